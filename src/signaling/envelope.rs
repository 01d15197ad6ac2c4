//! The JSON form of a message: one object with the fields of S0-31, each text and list with a maximum length.
//!
//! The types enforce the limits: a [`BoundedString`] or a [`BoundedVec`] that is too long cannot be deserialised. Unknown fields are
//! ignored (S0-A3), `null` counts as absent (S0-35, S0-36), a wrong type is an error (S0-A24).

use super::wire::{IceServer, MAX_KEY, Tag, Token};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// A message as JSON, before `t` gives the fields their meaning.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) t: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mid: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tag: Option<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) em: Option<BoundedString<256>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) params: Option<FieldsObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) extra: Option<FieldsObject>,
}

/// All fields of `params` and `extra`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tag: Option<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rtag: Option<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ltag: Option<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<BoundedString<MAX_KEY>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<BoundedString<128>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<i64>,
    #[serde(rename = "pub", skip_serializing_if = "Option::is_none")]
    pub(super) public: Option<BoundedString<64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nonce: Option<BoundedString<64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sig: Option<BoundedString<128>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tags: Option<Vec<Tag>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) more: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) watch: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) online: Option<Vec<Tag>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offline: Option<Vec<Tag>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) locator: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ttl: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) release: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ice_servers: Option<BoundedVec<IceServer, 16>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stun2: Option<BoundedString<300>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spray: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<BoundedString<64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rhost: Option<BoundedString<64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) punching: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<BoundedString<16>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<BoundedString<128>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ufrag: Option<BoundedString<256>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pwd: Option<BoundedString<256>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<BoundedString<16>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nat: Option<NatField>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) addr: Option<BoundedString<64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rtport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) laddrs: Option<BoundedVec<BoundedString<64>, 16>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) opts: Option<BoundedVec<BoundedString<64>, 8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cands: Option<BoundedVec<BoundedString<256>, 32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) done: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sdp: Option<BoundedString<49_152>>,
}

/// `nat` is a name in a peer's message and a boolean in the server's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum NatField {
    Word(BoundedString<16>),
    Behind(bool),
}

impl NatField {
    pub(super) fn word(&self) -> Option<&BoundedString<16>> {
        match self {
            Self::Word(word) => Some(word),
            Self::Behind(_) => None,
        }
    }
}

/// The readable part of a malformed message, for the error response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PartialHeader {
    pub(super) t: Option<i64>,
    pub(super) mid: Option<i64>,
    pub(super) answers: bool,
}

/// Deserialises a whole message.
pub(super) fn read(text: &str) -> Option<Envelope> {
    serde_json::from_str::<Map<Envelope>>(text).ok().map(|map| map.0)
}

/// Returns the readable fields of a JSON object, or `None` if the text is not a JSON object.
pub(super) fn read_head(text: &str) -> Option<PartialHeader> {
    let loose = serde_json::from_str::<Map<Loose>>(text).ok()?.0;
    Some(PartialHeader {
        t: loose.t.number(),
        mid: loose.mid.number(),
        answers: !matches!(loose.code, Value::Absent | Value::Null(()) | Value::Number(0)),
    })
}

/// Serialises a message. This cannot fail, because every field has a JSON form.
pub(super) fn write(envelope: &Envelope) -> String {
    serde_json::to_string(envelope).unwrap_or_default()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Loose {
    t: Value,
    mid: Value,
    code: Value,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Value {
    Number(i64),
    Null(()),
    Other(IgnoredAny),
    #[default]
    #[serde(skip)]
    Absent,
}

impl Value {
    fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }
}

/// `params` or `extra`. Boxed: most messages have only one of them, and the struct is large.
#[derive(Debug, Default)]
pub(super) struct FieldsObject(pub(super) Box<Fields>);

impl Serialize for FieldsObject {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FieldsObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(|map| Self(Box::new(map.0)))
    }
}

/// Accepts only a JSON object; serde's derive also accepts an array for a struct.
struct Map<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Map<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(OnlyMap(std::marker::PhantomData)).map(Map)
    }
}

/// A text of at most `MAX` bytes.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct BoundedString<const MAX: usize>(pub(super) String);

impl<'de, const MAX: usize> Deserialize<'de> for BoundedString<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > MAX { Err(D::Error::custom("text too long")) } else { Ok(Self(text)) }
    }
}

/// A list of at most `MAX` entries.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct BoundedVec<T, const MAX: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedVec<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = Vec::deserialize(deserializer)?;
        if list.len() > MAX { Err(D::Error::custom("list too long")) } else { Ok(Self(list)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_not_accepted_as_objects() {
        assert!(read("[1,2]").is_none());
        assert!(read(r#"{"t":1,"params":["a"]}"#).is_none());
        assert!(read(r#"{"t":1,"params":{"future":[1,{}]},"extra":null,"pad":"x"}"#).is_some());
    }

    #[test]
    fn the_head_of_a_wrongly_typed_message_is_still_readable() {
        let head = read_head;
        assert_eq!(
            head(r#"{"t":"1","mid":5}"#),
            Some(PartialHeader { t: None, mid: Some(5), answers: false })
        );
        assert_eq!(
            head(r#"{"t":1,"mid":1.5}"#),
            Some(PartialHeader { t: Some(1), mid: None, answers: false })
        );
        assert_eq!(
            head(r#"{"t":1,"code":"x"}"#),
            Some(PartialHeader { t: Some(1), mid: None, answers: true })
        );
        assert_eq!(
            head(r#"{"t":1,"mid":"x","code":0}"#),
            Some(PartialHeader { t: Some(1), mid: None, answers: false })
        );
        assert_eq!(head(r#"{"t":1"#), None);
        assert_eq!(head("[]"), None);
    }

    #[test]
    fn a_text_or_list_over_its_limit_is_refused() {
        let with = |n: usize| format!(r#"{{"t":1,"params":{{"key":"{}"}}}}"#, "k".repeat(n));
        assert!(read(&with(MAX_KEY)).is_some());
        assert!(read(&with(MAX_KEY + 1)).is_none());
        let cands = |n: usize| format!(r#"{{"t":1,"params":{{"cands":[{}]}}}}"#, vec!["\"c\""; n].join(","));
        assert!(read(&cands(32)).is_some());
        assert!(read(&cands(33)).is_none());
    }
}
