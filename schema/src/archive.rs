//! How values that are shared in memory look between processes: rkyv's derive does the rest.
//!
//! rkyv keeps track of every shared pointer so that two of them are one again on the other side. What we share is shared to
//! save copies within a process, and between two of them it is written where it stands: nothing is looked up.
//!
//! Frames of this kind never reach a disk or a database; `stored` has the bytes at rest.

use std::sync::Arc;

use bytes::Bytes;
use rkyv::{
    Archive, Deserialize, Place, Serialize, SerializeUnsized,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor::{Fallible, Source},
    ser::{Allocator, Writer, allocator::ArenaHandle},
    string::{ArchivedString, StringResolver},
    util::AlignedVec,
    vec::{ArchivedVec, VecResolver},
    with::{ArchiveWith, DeserializeWith, SerializeWith},
};

/// A text.
pub struct Text;

/// A value behind an [`Arc`].
pub struct Inline;

/// Several, behind one.
pub struct Several;

/// Several behind one, each behind another.
pub struct SeveralShared;

// === Text ===

impl ArchiveWith<Arc<str>> for Text {
    type Archived = ArchivedString;
    type Resolver = StringResolver;

    fn resolve_with(text: &Arc<str>, resolver: StringResolver, out: Place<ArchivedString>) {
        ArchivedString::resolve_from_str(text, resolver, out);
    }
}

impl<S: Fallible + ?Sized> SerializeWith<Arc<str>, S> for Text
where
    str: SerializeUnsized<S>,
    S::Error: Source,
{
    fn serialize_with(text: &Arc<str>, serializer: &mut S) -> Result<StringResolver, S::Error> {
        ArchivedString::serialize_from_str(text, serializer)
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<ArchivedString, Arc<str>, D> for Text {
    fn deserialize_with(text: &ArchivedString, _: &mut D) -> Result<Arc<str>, D::Error> {
        Ok(text.as_str().into())
    }
}

// === Inline ===

impl<T: Archive> ArchiveWith<Arc<T>> for Inline {
    type Archived = T::Archived;
    type Resolver = T::Resolver;

    fn resolve_with(value: &Arc<T>, resolver: T::Resolver, out: Place<T::Archived>) {
        value.as_ref().resolve(resolver, out);
    }
}

impl<T: Serialize<S>, S: Fallible + ?Sized> SerializeWith<Arc<T>, S> for Inline {
    fn serialize_with(value: &Arc<T>, serializer: &mut S) -> Result<T::Resolver, S::Error> {
        value.as_ref().serialize(serializer)
    }
}

impl<T: Archive, D: Fallible + ?Sized> DeserializeWith<T::Archived, Arc<T>, D> for Inline
where
    T::Archived: Deserialize<T, D>,
{
    fn deserialize_with(value: &T::Archived, deserializer: &mut D) -> Result<Arc<T>, D::Error> {
        value.deserialize(deserializer).map(Arc::new)
    }
}

// === Several ===

impl<T: Archive> ArchiveWith<Arc<[T]>> for Several {
    type Archived = ArchivedVec<T::Archived>;
    type Resolver = VecResolver;

    fn resolve_with(values: &Arc<[T]>, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(values.len(), resolver, out);
    }
}

impl<T: Serialize<S>, S: Fallible + Allocator + Writer + ?Sized> SerializeWith<Arc<[T]>, S> for Several {
    fn serialize_with(values: &Arc<[T]>, serializer: &mut S) -> Result<VecResolver, S::Error> {
        ArchivedVec::<T::Archived>::serialize_from_slice(values, serializer)
    }
}

impl<T: Archive, D: Fallible + ?Sized> DeserializeWith<ArchivedVec<T::Archived>, Arc<[T]>, D> for Several
where
    T::Archived: Deserialize<T, D>,
{
    fn deserialize_with(values: &ArchivedVec<T::Archived>, deserializer: &mut D) -> Result<Arc<[T]>, D::Error> {
        values.iter().map(|value| value.deserialize(deserializer)).collect()
    }
}

// === SeveralShared ===

/// Looks through the inner pointer.
struct Through<'a, T>(&'a Arc<T>);

impl<T: Archive> Archive for Through<'_, T> {
    type Archived = T::Archived;
    type Resolver = T::Resolver;

    fn resolve(&self, resolver: T::Resolver, out: Place<T::Archived>) {
        self.0.as_ref().resolve(resolver, out);
    }
}

impl<T: Serialize<S>, S: Fallible + ?Sized> Serialize<S> for Through<'_, T> {
    fn serialize(&self, serializer: &mut S) -> Result<T::Resolver, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}

impl<T: Archive> ArchiveWith<Arc<[Arc<T>]>> for SeveralShared {
    type Archived = ArchivedVec<T::Archived>;
    type Resolver = VecResolver;

    fn resolve_with(values: &Arc<[Arc<T>]>, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(values.len(), resolver, out);
    }
}

impl<T: Serialize<S>, S: Fallible + Allocator + Writer + ?Sized> SerializeWith<Arc<[Arc<T>]>, S> for SeveralShared {
    fn serialize_with(values: &Arc<[Arc<T>]>, serializer: &mut S) -> Result<VecResolver, S::Error> {
        ArchivedVec::<T::Archived>::serialize_from_iter(values.iter().map(Through), serializer)
    }
}

impl<T: Archive, D: Fallible + ?Sized> DeserializeWith<ArchivedVec<T::Archived>, Arc<[Arc<T>]>, D> for SeveralShared
where
    T::Archived: Deserialize<T, D>,
{
    fn deserialize_with(values: &ArchivedVec<T::Archived>, deserializer: &mut D) -> Result<Arc<[Arc<T>]>, D::Error> {
        values.iter().map(|value| value.deserialize(deserializer).map(Arc::new)).collect()
    }
}

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
#[error("these bytes are no message between our processes: {0}")]
pub struct Unreadable(rkyv::rancor::Error);

/// A value's bytes.
///
/// # Errors
/// When it does not fit into a message: beyond 2 GiB.
pub fn to_bytes<T>(value: &T) -> Result<Bytes, Unreadable>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rkyv::rancor::Error>>,
{
    rkyv::to_bytes::<rkyv::rancor::Error>(value).map(Bytes::from_owner).map_err(Unreadable)
}

/// The value of these bytes, which are looked at before anything in them is believed.
///
/// # Errors
/// When they are none.
pub fn from_bytes<T>(bytes: &[u8]) -> Result<T, Unreadable>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rkyv::rancor::Error>>
        + Deserialize<T, HighDeserializer<rkyv::rancor::Error>>,
{
    rkyv::from_bytes::<T, rkyv::rancor::Error>(bytes).map_err(Unreadable)
}

#[cfg(test)]
mod tests;
