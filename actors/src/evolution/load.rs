//! How busy the machine is, and whether it runs on battery. Where the system does not say, it is idle and on mains.

use std::path::Path;

/// The share of time in which some task waited for a processor (pressure stall information, 10 s average), 0 to 1.
pub(super) fn cpu_pressure() -> f32 {
    let text = fs_err::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    parse_pressure(&text).unwrap_or(0.0)
}

fn parse_pressure(text: &str) -> Option<f32> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let percent: f32 = some.split_whitespace().find_map(|part| part.strip_prefix("avg10="))?.parse().ok()?;
    Some((percent / 100.0).clamp(0.0, 1.0))
}

/// Whether a battery is being emptied.
pub(super) fn on_battery() -> bool {
    is_discharging(Path::new("/sys/class/power_supply"))
}

fn is_discharging(folder: &Path) -> bool {
    let Ok(entries) = fs_err::read_dir(folder) else {
        return false;
    };
    entries.filter_map(Result::ok).any(|entry| {
        let status = fs_err::read_to_string(entry.path().join("status")).unwrap_or_default();
        status.trim() == "Discharging"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_from_the_kernels_line() {
        let text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(parse_pressure(text), Some(0.125));
        assert_eq!(parse_pressure("nonsense"), None);
    }

    #[test]
    fn a_discharging_battery_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_discharging(folder.path()));
        let battery = folder.path().join("BAT0");
        fs_err::create_dir_all(&battery).unwrap();
        fs_err::write(battery.join("status"), "Discharging\n").unwrap();
        assert!(is_discharging(folder.path()));
    }
}
