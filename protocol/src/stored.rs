//! Messages as they are stored for one peer: listed, and chosen among.

use crate::id::{MessageId, MessageNumber};
use crate::limits::{KEY_BYTES_MAX, REASON_BYTES_MAX};
use crate::refusal::{Code, Refusal};
use crate::time::WallMillis;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Which of a peer's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Accepted and not done, in flight included.
    Waiting,
    /// Set aside for an operator. Of a removed peer that kept its messages: all it has left.
    Parked,
}

/// Why and since when a message is set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parking {
    /// When; absent where the record of it is no longer kept, or not on disk yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<WallMillis>,
    /// How often it was sent.
    pub attempts: u32,
    /// Why: what the receiver answered last, or what the node or an operator says.
    pub reason: String,
}

/// A choice among messages. What is absent does not matter; all that is there has to be true.
///
/// No field is left out when it is written: checkpoints hold it by position, where the next would take
/// its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Parked at this time or later; of waiting ones: accepted.
    pub since: Option<WallMillis>,
    /// Parked before this time; of waiting ones: accepted.
    pub until: Option<WallMillis>,
    /// The reason has this text in it.
    pub reason: Option<String>,
    /// The ordering key is exactly this.
    #[serde(with = "serde_bytes")]
    pub key: Option<Vec<u8>>,
}

impl Filter {
    /// Whether it lets everything through.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Holds its texts against the protocol's limits.
    ///
    /// # Errors
    /// [`Code::TooLarge`] for a text that nothing could ever match.
    pub fn check(&self) -> Result<(), Refusal> {
        let reason = self.reason.as_ref().map_or(0, String::len);
        let key = self.key.as_ref().map_or(0, Vec::len);
        for (what, bytes, max) in
            [("the reason", reason, REASON_BYTES_MAX), ("the key", key, KEY_BYTES_MAX)]
        {
            if bytes > max {
                let detail = format!("{what} has {bytes} bytes, expected at most {max}");
                return Err(Refusal::new(Code::TooLarge, detail));
            }
        }
        Ok(())
    }

    /// Whether it can choose among the messages of a lane.
    ///
    /// # Errors
    /// As [`Filter::check`], and [`Code::BadSetting`] where it asks for what messages of the lane do not have.
    pub fn check_for(&self, lane: Lane) -> Result<(), Refusal> {
        self.check()?;
        if lane == Lane::Waiting && self.reason.is_some() {
            let detail = "a reason is given for parked messages; waiting ones have none";
            return Err(Refusal::new(Code::BadSetting, detail));
        }
        Ok(())
    }

    /// Whether a parked message is among the chosen. One of which it is not known when and why it was
    /// parked is not, where either is asked for.
    #[must_use]
    pub fn chooses_parked(&self, parking: &Parking, key: Option<&[u8]>) -> bool {
        let is_reason = |text: &String| parking.reason.contains(text.as_str());
        self.chooses(parking.at, key) && self.reason.as_ref().is_none_or(is_reason)
    }

    /// Whether a waiting message is among the chosen.
    #[must_use]
    pub fn chooses_waiting(&self, accepted: WallMillis, key: Option<&[u8]>) -> bool {
        self.reason.is_none() && self.chooses(Some(accepted), key)
    }

    fn chooses(&self, at: Option<WallMillis>, key: Option<&[u8]>) -> bool {
        let is_key = self.key.is_none() || self.key.as_deref() == key;
        let is_since = self.since.is_none_or(|since| at.is_some_and(|at| at >= since));
        let is_until = self.until.is_none_or(|until| at.is_some_and(|at| at < until));
        is_key && is_since && is_until
    }
}

/// For the log: `since=… until=… reason=… key=…`, or `all`.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.since.map(|since| format!("since={since}")));
        words.extend(self.until.map(|until| format!("until={until}")));
        words.extend(self.reason.as_ref().map(|text| format!("reason={text:?}")));
        let key = self.key.as_deref().map(String::from_utf8_lossy);
        words.extend(key.map(|key| format!("key={key:?}")));
        f.write_str(if words.is_empty() { "all" } else { "" })?;
        f.write_str(&words.join(" "))
    }
}

/// A message stored for one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMessage {
    /// Its id, under which it is delivered.
    pub id: MessageId,
    /// When it was accepted.
    pub accepted: WallMillis,
    /// Bytes of its payload.
    pub bytes: u64,
    /// Its ordering key, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub key: Option<Vec<u8>>,
    /// Why it is set aside, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Parking>,
    /// The body section, see [`crate::message::Body`]: where bodies were asked for and this one is not
    /// over [`crate::limits::PAGE_BODY_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub body: Option<Vec<u8>>,
}

/// Some of a peer's messages, in order. At most [`crate::limits::MESSAGE_PAGE_MAX`], and perhaps none
/// though there are others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessagePage {
    /// These.
    pub messages: Vec<StoredMessage>,
    /// Everything up to here has been looked at.
    pub through: MessageNumber,
    /// Whether there may be others: ask again with `after` set to `through`.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(at: Option<u64>, reason: &str) -> Parking {
        Parking { at: at.map(WallMillis), attempts: 1, reason: reason.to_owned() }
    }

    #[test]
    fn what_is_said_has_to_be_true_and_what_is_not_said_does_not_matter() {
        let all = Filter::default();
        assert!(all.is_empty() && all.chooses_parked(&parked(None, ""), None));
        let key = Some(&b"k"[..]);
        let of_key = Filter { key: Some(b"k".to_vec()), ..Filter::default() };
        assert!(of_key.chooses_parked(&parked(None, ""), key));
        assert!(!of_key.chooses_parked(&parked(None, ""), None));
        assert!(!of_key.chooses_waiting(WallMillis(1), Some(b"kk")));
        let of_day = Filter {
            since: Some(WallMillis(10)),
            until: Some(WallMillis(20)),
            ..Filter::default()
        };
        let chosen = [9, 10, 19, 20].map(|at| of_day.chooses_parked(&parked(Some(at), ""), key));
        assert_eq!(chosen, [false, true, true, false]);
        assert!(!of_day.chooses_parked(&parked(None, ""), key), "nobody knows when");
        assert!(of_day.chooses_waiting(WallMillis(10), None));
        let of_reason = Filter { reason: Some("quota".to_owned()), ..Filter::default() };
        assert!(of_reason.chooses_parked(&parked(Some(1), "over quota today"), None));
        assert!(!of_reason.chooses_parked(&parked(Some(1), "gone"), None));
        assert_eq!(of_reason.check_for(Lane::Parked), Ok(()));
        assert_eq!(of_reason.check_for(Lane::Waiting).unwrap_err().code, Code::BadSetting);
        let long = Filter { key: Some(vec![0; KEY_BYTES_MAX + 1]), ..Filter::default() };
        assert_eq!(long.check().unwrap_err().code, Code::TooLarge);
    }
}
