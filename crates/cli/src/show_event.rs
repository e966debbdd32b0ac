//! What happened, for people: a line for each event, so that they can be followed.

use api::Event;
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

use crate::show::{Shown, harmless};

impl Shown for Vec<Event> {
    fn table(&self) -> String {
        let lines: Vec<String> = self.iter().map(line).collect();
        lines.join("\n")
    }
}

/// Such as `2026-11-29 01:00:00 warning health-changed web: health is Warning: ...`.
pub(crate) fn line(event: &Event) -> String {
    let Event {
        time,
        kind,
        severity,
        thing,
        what,
        way_out,
        ..
    } = event;
    let time = time.strftime("%Y-%m-%d %H:%M:%S");
    let mut rest = way_out.chars();
    let way_out = rest.next().map_or_else(String::new, |first| {
        format!(". {}{}", first.to_uppercase(), rest.as_str())
    });
    let (severity, kind) = (severity.name(), kind.name());
    // One line, whatever others said.
    let text = harmless(&format!("{thing}: {what}{way_out}")).replace('\n', "\\n");
    format!("{time} {severity:<7} {kind:<19} {text}")
}

/// A time such as `2026-11-29T01:00:00Z`, a day such as `2026-11-29` (UTC), or how long ago:
/// `30min`, `12h`, `7d`.
pub(crate) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    if let Ok(day) = text.parse::<civil::Date>() {
        let midnight = day.to_zoned(TimeZone::UTC);
        return midnight
            .map(|time| time.timestamp())
            .map_err(|error| error.to_string());
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: Option<i64> = match unit.trim() {
        "s" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let number: Option<i64> = number.parse().ok();
    let ago = number
        .zip(scale)
        .and_then(|(number, scale)| number.checked_mul(scale));
    let then = ago.and_then(|ago| {
        Timestamp::now()
            .checked_sub(SignedDuration::from_secs(ago))
            .ok()
    });
    then.ok_or_else(|| {
        "it must be how long ago, such as `12h` or `7d`, or a time such as `2026-11-29` or \
         `2026-11-29T01:00:00Z`"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_others_said() {
        let event: Event = serde_json::from_value(serde_json::json!({
            "id": 7, "time": "2026-11-29T01:00:00Z", "kind": "health-changed",
            "severity": "warning", "thing": "web", "what": "health is Warning: a\n\u{1b}b",
            "way_out": "mend it",
        }))
        .expect("an event");
        assert_eq!(
            vec![event].table(),
            "2026-11-29 01:00:00 warning health-changed      web: health is Warning: a\\n\\u{1b}b. \
             Mend it"
        );
    }

    #[test]
    fn a_time_is_a_time_a_day_or_how_long_ago() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(
            since("2026-11-29T01:00:00Z"),
            Ok(at("2026-11-29T01:00:00Z"))
        );
        assert_eq!(since("2026-11-29"), Ok(at("2026-11-29T00:00:00Z")));
        let before = Timestamp::now();
        let then = since("1d").expect("a time");
        let day = SignedDuration::from_hours(24);
        assert!(
            before - day <= then && then <= Timestamp::now() - day,
            "{then}"
        );
        for bad in [
            "",
            "d",
            "1",
            "1y",
            "-1d",
            "yesterday",
            "99999999999999999d",
            "9999999999999999h",
        ] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }
}
