//! How durations, sizes and headers are written on the command line.

use restante_protocol::time::WallMillis;
use std::time::Duration;

/// A hundred years: longer than anything is waited for, and a time that can still be counted with.
const DURATION_MAX: Duration = Duration::from_secs(36_500 * 86_400);

/// `250ms`, `30s`, `1.5m`, `2h`, `1d`; a bare number counts seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || {
        format!("expected a duration like 250ms, 30s, 5m, 2h or 1d, at most 36500d, got {text:?}")
    };
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(expected()),
    };
    let duration = Duration::try_from_secs_f64(number * seconds).ok();
    duration.filter(|duration| *duration <= DURATION_MAX).ok_or_else(expected)
}

/// A duration in whole milliseconds.
pub(crate) fn millis(text: &str) -> Result<u64, String> {
    u64::try_from(duration(text)?.as_millis())
        .map_err(|_| format!("{text:?} is longer than can be counted"))
}

/// A time of the past: how long ago, `2026-11-23` or `2026-11-23T23:14:05Z`.
pub(crate) fn moment(text: &str) -> Result<WallMillis, String> {
    if let Ok(ago) = millis(text) {
        return Ok(WallMillis(super::show::now().0.saturating_sub(ago)));
    }
    text.parse().map_err(|error| format!("{error}, or how long ago: 24h, 30m"))
}

/// `1s,5s,1m` in whole milliseconds.
pub(crate) fn millis_list(text: &str) -> Result<MillisList, String> {
    if text.is_empty() {
        return Ok(MillisList(Vec::new()));
    }
    text.split(',').map(|part| millis(part.trim())).collect::<Result<_, _>>().map(MillisList)
}

/// A list that is one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MillisList(pub(crate) Vec<u64>);

/// `65536`, `64KiB`, `4MiB`, `1GiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size like 65536, 64KiB, 4MiB or 1GiB, got {text:?}");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(expected()),
    };
    number.checked_mul(factor).ok_or_else(expected)
}

/// `50/s`, or `50`.
pub(crate) fn per_second(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    number.parse().map_err(|_| format!("expected so many a second, like 50/s, got {text:?}"))
}

/// `1MiB/s`, or `1MiB`.
pub(crate) fn bytes_per_second(text: &str) -> Result<u64, String> {
    bytes(text.strip_suffix("/s").unwrap_or(text))
}

/// `HOST:PORT`. Whether there is such a host, and whether the port is free, the system says.
pub(crate) fn host_and_port(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':');
    match parts.filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        Some(_) => Ok(text.to_owned()),
        None => Err("expected HOST:PORT, port 0 takes a free one".to_owned()),
    }
}

/// `name:value`; blanks around the value are not part of it.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, _)) if name.contains(char::is_control) => {
            Err("a header's name has no control characters".to_owned())
        }
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(format!("expected NAME:VALUE, got {text:?}")),
    }
}

/// Base64 with padding (RFC 4648), for payloads that are no text.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                text.push(char::from(DIGITS[(word >> (18 - 6 * place)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// What [`base64`] encoded; `None` for anything else.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text.as_bytes().chunks(4) {
        let (digits, padding) = match chunk {
            [_, _, b'=', b'='] => (&chunk[..2], 2),
            [_, _, _, b'='] => (&chunk[..3], 1),
            [_, _, _, _] => (chunk, 0),
            _ => return None,
        };
        let mut word = 0u32;
        for digit in digits {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            word = word << 6 | u32::from(value);
        }
        word <<= 6 * padding;
        bytes.extend_from_slice(&word.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_absurd_ones_are_refused() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(millis("1d"), Ok(86_400_000));
        let far = "99999999999999999999d";
        // What a deadline cannot be counted for is refused, not run into.
        let uncountable = format!("{}s", i64::MAX);
        for bad in ["", "s", "-1s", "1 s", "1e9s", "1w", "..s", far, &uncountable, "36501d", "nan"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("36500d"), Ok(DURATION_MAX));
        assert_eq!(millis_list("1s, 5m"), Ok(MillisList(vec![1_000, 300_000])));
        assert!(millis_list("1s,,2s").is_err());
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("4MiB"), Ok(4 << 20));
        assert_eq!(bytes("17"), Ok(17));
        for bad in ["", "MiB", "4MB", "-4", "99999999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_so_many_or_so_much_a_second() {
        assert_eq!((per_second("50/s"), per_second("0")), (Ok(50), Ok(0)));
        assert_eq!(bytes_per_second("2KiB/s"), Ok(2_048));
        for bad in ["", "/s", "-1/s", "50/m", "1.5/s"] {
            assert!(per_second(bad).is_err() && bytes_per_second(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_split_at_the_first_colon() {
        assert_eq!(header("when: 12:30 "), Ok(("when".to_owned(), "12:30".to_owned())));
        assert!(header("novalue").is_err() && header(":x").is_err());
        assert!(header("na\nme:x").unwrap_err().contains("control characters"));
        assert_eq!(header("name:a\nb"), Ok(("name".to_owned(), "a\nb".to_owned())));
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["127.0.0.1:0", "localhost:7700", "[::1]:65535"] {
            assert_eq!(host_and_port(good).as_deref(), Ok(good));
        }
        for bad in ["", "foo", "foo:", ":7", "foo:65536", "foo:-1"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(plain.as_bytes()));
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
        for bad in ["Z", "Zg=", "Z===", "Zg==Zg==!", "Zm 9"] {
            assert_eq!(from_base64(bad), None, "{bad}");
        }
    }
}
