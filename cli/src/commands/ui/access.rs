//! Who may ask: a one-time token in the link is traded for a key that lives in one tab; requests of other sites are refused.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::http::Request;
use crate::error::CommandError;

/// Tabs at once; the one that was quiet the longest makes way.
const KEYS_MAX: usize = 16;
/// A link that nobody has opened for so long is worth nothing any more.
const TOKEN_LIFE: Duration = Duration::from_mins(10);
/// A tab that was quiet for so long has to be opened anew.
const KEY_LIFE: Duration = Duration::from_hours(12);
/// Random bytes of a token and of a key: nobody guesses 192 bits.
const SECRET_BYTES: usize = 24;

/// Tokens and keys that are good, and the addresses that the page has.
pub(super) struct Access {
    port: u16,
    token: Mutex<Option<(String, Instant)>>,
    keys: Mutex<Vec<(String, Instant)>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets stay out of logs.
        f.debug_struct("Access").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Access {
    pub(super) fn new(port: u16) -> Self {
        Self { port, token: Mutex::default(), keys: Mutex::default() }
    }

    /// A new link; the former one is worth nothing any more. The token stands behind `#`, which browsers send to nobody.
    pub(super) fn link(&self) -> Result<String, CommandError> {
        let token = secret()?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some((token.clone(), Instant::now()));
        Ok(format!("http://127.0.0.1:{}/#token={token}", self.port))
    }

    /// Trades a token for a key, once.
    pub(super) fn enter(&self, offered: &str) -> Result<Option<String>, CommandError> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let good = token.as_ref().is_some_and(|(token, made)| made.elapsed() < TOKEN_LIFE && same(token, offered));
        if !good {
            return Ok(None);
        }
        *token = None;
        let key = secret()?;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= KEYS_MAX {
            keys.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
            keys.truncate(KEYS_MAX - 1);
        }
        keys.push((key.clone(), Instant::now()));
        Ok(Some(key))
    }

    /// Whether a request carries a key that is good.
    pub(super) fn knows(&self, request: &Request) -> bool {
        let Some(offered) = &request.bearer else { return false };
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|(_, used)| used.elapsed() < KEY_LIFE);
        match keys.iter_mut().find(|(key, _)| same(key, offered)) {
            Some((_, used)) => {
                *used = Instant::now();
                true
            }
            None => false,
        }
    }

    /// Whether a request was meant for this page. A site that points its own name at the loopback (DNS rebinding) sends its own
    /// `Host`, and a site that posts to us from its own page sends its own `Origin`.
    pub(super) fn is_ours(&self, request: &Request) -> bool {
        let hosts = [format!("127.0.0.1:{}", self.port), format!("localhost:{}", self.port)];
        let Some(host) = request.host.as_ref().filter(|host| hosts.contains(host)) else { return false };
        match &request.origin {
            Some(origin) => *origin == format!("http://{host}"),
            // Browsers send no Origin when they open a page or load its files, and always one with a POST.
            None => request.method == "GET",
        }
    }
}

fn secret() -> Result<String, CommandError> {
    let mut bytes = [0_u8; SECRET_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| CommandError::usage(format!("system gives no random bytes: {error}")))?;
    Ok(bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

/// Compares without telling by its time where two secrets differ.
fn same(known: &str, offered: &str) -> bool {
    known.len() == offered.len()
        && known.bytes().zip(offered.bytes()).fold(0_u8, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, host: Option<&str>, origin: Option<&str>, bearer: Option<&str>) -> Request {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Request {
            method: method.into(),
            path: "/".into(),
            host: own(host),
            origin: own(origin),
            bearer: own(bearer),
            content_type: None,
            body: Vec::new(),
        }
    }

    #[test]
    fn a_token_opens_once_and_a_newer_link_makes_the_older_one_worthless() {
        let access = Access::new(9);
        let token = |link: String| link.split_once("#token=").unwrap().1.to_owned();
        let old = token(access.link().unwrap());
        let new = token(access.link().unwrap());
        assert_eq!(access.enter(&old).unwrap(), None);
        assert_eq!(access.enter("").unwrap(), None);
        let key = access.enter(&new).unwrap().expect("it is good");
        assert_eq!(access.enter(&new).unwrap(), None, "once only");
        assert!(access.knows(&request("POST", None, None, Some(&key))));
        assert!(!access.knows(&request("POST", None, None, Some(&new))), "the token is no key");
        assert!(!access.knows(&request("POST", None, None, None)));
    }

    #[test]
    fn the_tab_that_was_quiet_longest_makes_way() {
        let access = Access::new(9);
        let open = || {
            let link = access.link().unwrap();
            access.enter(link.split_once("#token=").unwrap().1).unwrap().unwrap()
        };
        let first = open();
        let rest: Vec<String> = (0..KEYS_MAX).map(|_| open()).collect();
        assert!(!access.knows(&request("POST", None, None, Some(&first))));
        assert!(rest.iter().all(|key| access.knows(&request("POST", None, None, Some(key)))));
    }

    #[test]
    fn other_hosts_and_other_origins_are_not_ours() {
        let access = Access::new(9);
        let ours = |method, host, origin| access.is_ours(&request(method, host, origin, None));
        assert!(ours("GET", Some("127.0.0.1:9"), None) && ours("GET", Some("localhost:9"), None));
        assert!(ours("POST", Some("127.0.0.1:9"), Some("http://127.0.0.1:9")));
        assert!(
            !ours("GET", Some("evil.example:9"), None)
                && !ours("GET", None, None)
                && !ours("GET", Some("127.0.0.1:8"), None)
        );
        assert!(!ours("POST", Some("127.0.0.1:9"), None), "a POST of a browser has an origin");
        for origin in ["http://evil.example", "null", "https://127.0.0.1:9", "http://localhost:9", "http://127.0.0.1:8"]
        {
            assert!(
                !ours("POST", Some("127.0.0.1:9"), Some(origin)) && !ours("GET", Some("127.0.0.1:9"), Some(origin))
            );
        }
    }
}
