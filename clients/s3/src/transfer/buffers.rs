//! Memory for parts, used again: a fresh buffer of 8 MiB costs 2,048 page faults.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// The buffers of one transfer.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer on loan.
struct Loan {
    bytes: Vec<u8>,
    length: usize,
    back: Buffers,
}

impl Buffers {
    /// So many bytes as `fill` leaves them. The buffer comes back when the last clone is gone.
    pub(crate) fn filled<E>(
        &self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut loan = Loan { bytes: free.unwrap_or_default(), length, back: self.clone() };
        if loan.bytes.len() < length {
            // Not resized: that would copy what is about to be overwritten.
            loan.bytes = vec![0; length];
        }
        fill(&mut loan.bytes[..length])?;
        Ok(Bytes::from_owner(loan))
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.back.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_nobody_holds_it() {
        let buffers = Buffers::default();
        let fill = |with: u8| {
            move |bytes: &mut [u8]| {
                bytes.fill(with);
                Ok::<_, ()>(())
            }
        };
        let first = buffers.filled(100, fill(1)).unwrap();
        let place = first.as_ptr();
        let clone = first.clone();
        drop(first);
        let second = buffers.filled(100, fill(2)).unwrap();
        assert_eq!((&clone[..], &second[..]), (&[1; 100][..], &[2; 100][..]));
        drop(clone);
        let third = buffers.filled(10, fill(3)).unwrap();
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 10][..]));
        buffers.filled(10, |_| Err(())).unwrap_err();
        assert_eq!(buffers.0.lock().unwrap().len(), 1, "a buffer that was not filled was lost");
    }
}
