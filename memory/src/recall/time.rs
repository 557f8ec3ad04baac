//! Reads the times that a question names: dates, months, years, and what is counted from now ("yesterday", "2 weeks ago").
//!
//! A time is a span `[start, end)` in UTC. A date without a year is its latest occurrence up to the reference moment, because
//! questions to a memory look back. What is not understood is left alone: its words are still searched for.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan};
use mneme_base::Timestamp;

/// At most this many times are read from one question.
const SPANS_MAX: usize = 8;
/// Counts larger than this ("100000 years ago") are no times of a memory.
const COUNT_MAX: i64 = 1_000;

/// A stretch of time that a question names (milliseconds, UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeSpan {
    /// Its first moment.
    pub start: i64,
    /// The moment after its last.
    pub end: i64,
}

impl TimeSpan {
    /// How near a moment is: 1 inside, falling by half with every half length (at least a day) of distance.
    pub fn nearness(&self, moment: i64) -> f32 {
        const DAY: i64 = 86_400_000;
        let apart = if moment < self.start { self.start - moment } else { (moment - self.end + 1).max(0) };
        let half = ((self.end - self.start) / 2).max(DAY);
        (-(apart as f32 / half as f32)).exp2()
    }
}

/// The times that a text names, in order. Never fails: what cannot be read is no time.
pub fn time_spans(text: &str, reference: Timestamp) -> Vec<TimeSpan> {
    let Ok(moment) = jiff::Timestamp::from_millisecond(reference.as_millis()) else { return Vec::new() };
    let today = moment.to_zoned(TimeZone::UTC).date();
    let words = split(text);
    let mut spans = Vec::new();
    let mut at = 0;
    while at < words.len() && spans.len() < SPANS_MAX {
        let words: Vec<&str> = words[at..].iter().take(6).map(String::as_str).collect();
        match read(&words, today) {
            Some((days, used)) => {
                spans.extend(days.and_then(Days::span));
                at += used;
            }
            None => at += 1,
        }
    }
    spans
}

/// Days from the first to before the last.
#[derive(Debug, Clone, Copy)]
struct Days(Date, Date);

impl Days {
    fn one(day: Date) -> Option<Self> {
        Some(Self(day, day.tomorrow().ok()?))
    }

    fn month(year: i16, month: i8) -> Option<Self> {
        let first = Date::new(year, month, 1).ok()?;
        Some(Self(first, first.checked_add(1.month()).ok()?))
    }

    fn year(year: i16) -> Option<Self> {
        Some(Self(Date::new(year, 1, 1).ok()?, Date::new(year.checked_add(1)?, 1, 1).ok()?))
    }

    fn span(self) -> Option<TimeSpan> {
        let millis = |day: Date| Some(day.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond());
        Some(TimeSpan { start: millis(self.0)?, end: millis(self.1)? })
    }
}

/// Lower-case words and numbers; `2024-01-05`, `5.1.2024` and `5/1/2024` stay whole.
fn split(text: &str) -> Vec<String> {
    text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '?' | '!' | ';' | '(' | ')' | '"'))
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase())
        .map(|word| word.trim_end_matches("'s").trim_end_matches("\u{2019}s").to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Reads a time at the start of the words: the days (none if the words form an impossible date) and how many words they took.
fn read(words: &[&str], today: Date) -> Option<(Option<Days>, usize)> {
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    if let Some(day) = numeric_date(word(0)) {
        return Some((Days::one(day), 1));
    }
    if let Some(found) = named_date(words, today) {
        return Some(found);
    }
    if let Some(found) = counted(words, today) {
        return Some(found);
    }
    let relative = |days: Option<Days>, used| Some((days, used));
    match (word(0), word(1), word(2)) {
        ("the", "day", "before") if word(3) == "yesterday" => relative(shift(today, -2.days()), 4),
        ("today" | "tonight", ..) => relative(Days::one(today), 1),
        ("yesterday", ..) => relative(shift(today, -1.days()), 1),
        ("tomorrow", ..) => relative(shift(today, 1.day()), 1),
        ("last", "night", _) => relative(shift(today, -1.days()), 2),
        ("this", "morning" | "afternoon" | "evening", _) => relative(Days::one(today), 2),
        (which @ ("last" | "this" | "past" | "previous" | "next"), unit, _) => {
            relative(Some(around(which, unit, today)?), 2)
        }
        ("recently" | "lately", ..) => relative(days_before(today, 14), 1),
        _ => None,
    }
}

fn shift(today: Date, span: Span) -> Option<Days> {
    Days::one(today.checked_add(span).ok()?)
}

fn days_before(today: Date, days: i64) -> Option<Days> {
    Some(Days(today.checked_sub(days.days()).ok()?, today.tomorrow().ok()?))
}

/// "last week", "this month", "next friday", "last summer".
fn around(which: &str, unit: &str, today: Date) -> Option<Days> {
    let step: i64 = match which {
        "this" => 0,
        "next" => 1,
        _ => -1,
    };
    let monday = || today.checked_sub(i64::from(today.weekday().to_monday_zero_offset()).days()).ok();
    match unit {
        "week" => monday().and_then(|first| {
            let first = first.checked_add((7 * step).days()).ok()?;
            Some(Days(first, first.checked_add(7.days()).ok()?))
        }),
        "weekend" => monday().and_then(|first| {
            let saturday = first.checked_add((7 * step + 5).days()).ok()?;
            Some(Days(saturday, saturday.checked_add(2.days()).ok()?))
        }),
        "month" => {
            today.first_of_month().checked_add(step.months()).ok().and_then(|d| Days::month(d.year(), d.month()))
        }
        "year" => Days::year(today.year().checked_add(step as i16)?),
        _ => {
            if let Some(day) = weekday(unit) {
                let ahead = i64::from(day.to_monday_zero_offset()) - i64::from(today.weekday().to_monday_zero_offset());
                let days = match step {
                    0 => ahead,
                    1 => {
                        if ahead <= 0 {
                            ahead + 7
                        } else {
                            ahead
                        }
                    }
                    _ => {
                        if ahead >= 0 {
                            ahead - 7
                        } else {
                            ahead
                        }
                    }
                };
                shift(today, days.days())
            } else if let Some(month) = month_number(unit) {
                latest_month(month, today)
            } else {
                let (first, year) = (season_month(unit)?, today.year());
                let this_year = season(first, year)?;
                if this_year.0 > today && step <= 0 { season(first, year - 1) } else { Some(this_year) }
            }
        }
    }
}

/// "3 days ago", "two weeks ago", "a month ago"; "past 3 days", "last two weeks".
fn counted(words: &[&str], today: Date) -> Option<(Option<Days>, usize)> {
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    let (back, at) = if matches!(word(0), "past" | "last" | "previous") { (true, 1) } else { (false, 0) };
    let count = small_number(word(at))?;
    let unit = word(at + 1).trim_end_matches('s');
    let span = match unit {
        "day" => count.days(),
        "week" => (7 * count).days(),
        "month" => count.months(),
        "year" => (12 * count).months(),
        _ => return None,
    };
    if back {
        let days = today.checked_sub(span).ok().and_then(|first| Some(Days(first, today.tomorrow().ok()?)));
        return Some((days, at + 2));
    }
    if word(at + 2) != "ago" {
        return None;
    }
    let centre = today.checked_sub(span).ok();
    // The coarser the unit, the vaguer the day.
    let days = match unit {
        "day" => centre.and_then(Days::one),
        "week" => centre.and_then(|day| wide(day, 3)),
        "month" => centre.and_then(|day| wide(day, 15)),
        _ => centre.and_then(|day| wide(day, 182)),
    };
    Some((days, at + 3))
}

fn wide(day: Date, reach: i64) -> Option<Days> {
    Some(Days(day.checked_sub(reach.days()).ok()?, day.checked_add((reach + 1).days()).ok()?))
}

/// "5 Jan 2024", "5th of January", "January 5, 2024", "May 2023", "in May", "in 2022", "winter 2021".
fn named_date(words: &[&str], today: Date) -> Option<(Option<Days>, usize)> {
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    if let Some(day) = day_number(word(0)) {
        let at = if word(1) == "of" { 2 } else { 1 };
        let month = month_number(word(at))?;
        return Some(match year_number(word(at + 1)) {
            Some(year) => (Date::new(year, month, day).ok().and_then(Days::one), at + 2),
            None => (latest_day(month, day, today), at + 1),
        });
    }
    if let Some(month) = month_number(word(0)) {
        if let Some(year) = year_number(word(1)) {
            return Some((Days::month(year, month), 2));
        }
        if let Some(day) = day_number(word(1)) {
            return Some(match year_number(word(2)) {
                Some(year) => (Date::new(year, month, day).ok().and_then(Days::one), 3),
                None => (latest_day(month, day, today), 2),
            });
        }
        // "may" and "march" are verbs more often than months.
        return (!matches!(word(0), "may" | "march" | "mar" | "sat" | "sun")).then(|| (latest_month(month, today), 1));
    }
    let preposition =
        matches!(word(0), "in" | "during" | "since" | "of" | "from" | "until" | "by" | "before" | "after");
    if preposition {
        if let Some(month) =
            month_number(word(1)).filter(|_| year_number(word(2)).is_none() && day_number(word(2)).is_none())
        {
            return Some((latest_month(month, today), 2));
        }
        if let Some(year) = year_number(word(1)) {
            return Some((Days::year(year), 2));
        }
    }
    if let (Some(first), Some(year)) = (season_month(word(0)), year_number(word(1))) {
        return Some((season(first, year), 2));
    }
    if word(0) == "on" {
        let day = weekday(word(1))?;
        let behind = i64::from(today.weekday().to_monday_zero_offset()) - i64::from(day.to_monday_zero_offset());
        return Some((shift(today, (-behind.rem_euclid(7)).days()), 2));
    }
    None
}

fn latest_day(month: i8, day: i8, today: Date) -> Option<Days> {
    let this_year = Date::new(today.year(), month, day);
    match this_year {
        Ok(day) if day <= today => Days::one(day),
        _ => Date::new(today.year() - 1, month, day).ok().and_then(Days::one),
    }
}

fn latest_month(month: i8, today: Date) -> Option<Days> {
    Days::month(if month > today.month() { today.year() - 1 } else { today.year() }, month)
}

/// Three months from the first; winter begins in December of the year before.
fn season(first: i8, year: i16) -> Option<Days> {
    // A year that there is no calendar of has no seasons.
    let start = Date::new(year, first, 1).ok()?;
    Some(Days(start, start.checked_add(3.months()).ok()?))
}

fn season_month(word: &str) -> Option<i8> {
    Some(match word {
        "spring" => 3,
        "summer" => 6,
        "autumn" | "fall" => 9,
        "winter" => 12,
        _ => return None,
    })
}

/// `2024-01-05`, `2024/1/5`, `5.1.2024`, `05/01/2024` (day first unless that is impossible).
fn numeric_date(word: &str) -> Option<Date> {
    let parts: Vec<&str> = word.split(['-', '/', '.']).collect();
    let [a, b, c] = parts.as_slice() else { return None };
    let number = |text: &str| text.parse::<i16>().ok();
    if a.len() == 4 {
        return Date::new(number(a)?, i8::try_from(number(b)?).ok()?, i8::try_from(number(c)?).ok()?).ok();
    }
    let (day, month) = (i8::try_from(number(a)?).ok()?, i8::try_from(number(b)?).ok()?);
    let year = match c.len() {
        4 => number(c)?,
        2 => 2_000 + number(c)?,
        _ => return None,
    };
    Date::new(year, month, day).or_else(|_| Date::new(year, day, month)).ok()
}

fn day_number(word: &str) -> Option<i8> {
    let digits = ["st", "nd", "rd", "th"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
    digits.parse::<i8>().ok().filter(|day| (1..=31).contains(day))
}

fn year_number(word: &str) -> Option<i16> {
    (word.len() == 4).then(|| word.parse::<i16>().ok()).flatten().filter(|year| (1_000..=2_999).contains(year))
}

fn small_number(word: &str) -> Option<i64> {
    const WORDS: [&str; 13] =
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
    if matches!(word, "a" | "an") {
        return Some(1);
    }
    if word == "couple" {
        return Some(2);
    }
    let named = WORDS.iter().position(|name| *name == word).map(|count| count as i64);
    named.or_else(|| word.parse().ok()).filter(|count| (0..=COUNT_MAX).contains(count))
}

fn month_number(word: &str) -> Option<i8> {
    const MONTHS: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    let full = |name: &&str| {
        *name == word || (word.len() == 3 && name.starts_with(word)) || (word == "sept" && name.starts_with(word))
    };
    MONTHS.iter().position(full).map(|at| at as i8 + 1)
}

fn weekday(word: &str) -> Option<Weekday> {
    const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    let at = DAYS.iter().position(|name| *name == word)?;
    Weekday::from_monday_zero_offset(at as i8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-03-13 is a Wednesday.
    fn check(text: &str, expected: &[(&str, &str)]) {
        let reference: Timestamp = "2024-03-13T15:00:00Z".parse().unwrap();
        let spans = time_spans(text, reference);
        let dates: Vec<(String, String)> = spans
            .iter()
            .map(|s| (Timestamp::from_millis(s.start).date(), Timestamp::from_millis(s.end).date()))
            .collect();
        let expected: Vec<(String, String)> = expected.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
        assert_eq!(dates, expected, "{text}");
    }

    #[test]
    fn reads_dates_in_the_forms_people_write() {
        for text in ["on 5 Jan 2024?", "January 5, 2024", "2024-01-05", "05.01.2024", "5th of January", "Jan 5th"] {
            check(text, &[("2024-01-05", "2024-01-06")]);
        }
        check("in May 2023", &[("2023-05-01", "2023-06-01")]);
        check("in May", &[("2023-05-01", "2023-06-01")]);
        check("in 2022", &[("2022-01-01", "2023-01-01")]);
        check("winter 2021", &[("2021-12-01", "2022-03-01")]);
        check("between 3 and 5 people may march", &[]);
    }

    #[test]
    fn a_reference_at_the_edge_of_the_calendar_is_no_reason_to_panic() {
        let words = ["last winter", "this winter", "next winter", "last summer", "last year", "yesterday", "tomorrow"];
        for text in
            words.iter().chain(&["in May", "on 5 Jan", "last monday", "3 weeks ago", "in 2 years", "next month"])
        {
            for edge in [-377_705_023_201_000, 253_402_207_200_000] {
                time_spans(text, Timestamp::from_millis(edge));
            }
        }
    }

    #[test]
    fn counts_from_the_reference_moment() {
        check("what did I do yesterday", &[("2024-03-12", "2024-03-13")]);
        check("the day before yesterday", &[("2024-03-11", "2024-03-12")]);
        check("last week", &[("2024-03-04", "2024-03-11")]);
        check("this month", &[("2024-03-01", "2024-04-01")]);
        check("last month", &[("2024-02-01", "2024-03-01")]);
        check("last year", &[("2023-01-01", "2024-01-01")]);
        check("last friday", &[("2024-03-08", "2024-03-09")]);
        check("on Wednesday", &[("2024-03-13", "2024-03-14")]);
        check("two weeks ago", &[("2024-02-25", "2024-03-03")]);
        check("3 days ago", &[("2024-03-10", "2024-03-11")]);
        check("in the past 3 days", &[("2024-03-10", "2024-03-14")]);
        check("last summer", &[("2023-06-01", "2023-09-01")]);
    }

    #[test]
    fn impossible_and_huge_dates_are_no_times() {
        check("31 February 2024", &[]);
        check("99.99.9999", &[]);
        check("9999999999 days ago", &[]);
        check("10000 years ago", &[]);
        assert!(time_spans("yesterday", Timestamp::from_millis(i64::MAX)).is_empty());
    }

    #[test]
    fn nearness_falls_with_distance() {
        let day = TimeSpan { start: 0, end: 86_400_000 };
        assert!((day.nearness(1_000) - 1.0).abs() < 1e-6);
        assert!(day.nearness(2 * 86_400_000) < 0.51 && day.nearness(2 * 86_400_000) > 0.49);
    }

    proptest::proptest! {
        #[test]
        fn no_text_and_no_moment_make_it_fail(text in ".{0,80}", moment: i64) {
            time_spans(&text, Timestamp::from_millis(moment));
        }

        #[test]
        fn numbers_before_units_never_fail(count: u64, unit in "(day|week|month|year)s?") {
            time_spans(&format!("{count} {unit} ago, last {count} {unit}"), Timestamp::from_millis(1_700_000_000_000));
        }
    }
}
