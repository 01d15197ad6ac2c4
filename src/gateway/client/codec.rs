//! What messages mean to their two ends: bytes, or something else.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::error::Error;
use std::marker::PhantomData;

/// Makes messages out of values and values out of messages (S2-20, S2-25, S2-A4).
pub trait Codec: Clone + Send + Sync + 'static {
    /// What is sent and received.
    type Value: Send;
    /// Why it cannot be.
    type Error: Error + Send + Sync + 'static;

    /// Makes a message.
    ///
    /// # Errors
    /// The codec's own.
    fn encode(&self, value: Self::Value) -> Result<Bytes, Self::Error>;

    /// Reads a message.
    ///
    /// # Errors
    /// The codec's own.
    fn decode(&self, message: Bytes) -> Result<Self::Value, Self::Error>;
}

/// Bytes as they are; nothing is copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Raw;

impl Codec for Raw {
    type Value = Bytes;
    type Error = Infallible;

    fn encode(&self, value: Bytes) -> Result<Bytes, Infallible> {
        Ok(value)
    }

    fn decode(&self, message: Bytes) -> Result<Bytes, Infallible> {
        Ok(message)
    }
}

/// One JSON text a message.
#[derive(Debug)]
pub struct Json<T>(PhantomData<fn(T) -> T>);

impl<T> Json<T> {
    /// Makes the codec for values of type `T`.
    #[must_use]
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for Json<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for Json<T> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Codec for Json<T> {
    type Value = T;
    type Error = serde_json::Error;

    fn encode(&self, value: T) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(&value).map(Bytes::from)
    }

    fn decode(&self, message: Bytes) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&message)
    }
}
