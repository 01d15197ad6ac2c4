//! Formats of messages.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::error::Error;
use std::marker::PhantomData;

/// Encodes values as messages and decodes messages (S2-20, S2-25, S2-A4).
pub trait Codec: Clone + Send + Sync + 'static {
    /// What is sent and received.
    type Value: Send;
    /// Why a value cannot be encoded or decoded.
    type Error: Error + Send + Sync + 'static;

    /// Encodes a value.
    ///
    /// # Errors
    /// The codec's own.
    fn encode(&self, value: Self::Value) -> Result<Bytes, Self::Error>;

    /// Decodes a message.
    ///
    /// # Errors
    /// The codec's own.
    fn decode(&self, message: Bytes) -> Result<Self::Value, Self::Error>;
}

/// Bytes without conversion or copy.
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

/// One JSON text per message.
#[derive(Debug)]
pub struct Json<T>(PhantomData<fn(T) -> T>);

impl<T> Json<T> {
    /// Creates the codec for values of type `T`.
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
