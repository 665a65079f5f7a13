//! How messages are encoded and decoded: as tonic does it, in buffers of their own size.

use std::{fmt, marker::PhantomData};

use prost::Message;
use tonic::codec::BufferSettings;
use tonic_prost::ProstCodec;

/// What most messages fit into; larger ones grow their buffer. tonic's 8 KiB, twice for every RPC at either end, come from
/// where an allocator is slow.
const BUFFER: usize = 512;
/// A stream yields after so many bytes, as tonic's own.
const YIELD_AT: usize = 32 * 1024;

/// [`ProstCodec`] with small buffers.
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> fmt::Debug for Codec<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").finish_non_exhaustive()
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as tonic::codec::Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as tonic::codec::Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD_AT))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD_AT))
    }
}
