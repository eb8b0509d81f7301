//! The first directory of a TIFF or BigTIFF, as far as fields are looked at and changed that the decoder does not care for.

/// Whether colours are grey, RGB, of a palette, …
pub(crate) const PHOTOMETRIC: u16 = 262;
/// Grey, 0 is black.
pub(crate) const PHOTOMETRIC_GREY: u16 = 1;
/// Of a palette.
pub(crate) const PHOTOMETRIC_PALETTE: u16 = 3;
/// Which bit of a byte comes first: 1 the highest, 2 the lowest.
pub(crate) const FILL_ORDER: u16 = 266;

/// How data are compressed.
pub(crate) const COMPRESSION: u16 = 259;
/// By JPEG, as technical note 2 to TIFF 6 has it.
pub(crate) const COMPRESSION_JPEG: u16 = 7;
/// Number of samples of a pixel.
pub(crate) const SAMPLES: u16 = 277;

/// Type of a field of 16 bits.
const SHORT: u16 = 3;

/// Places of the fields of the first image.
pub(crate) struct Directory {
    is_little: bool,
    /// Place of the first field, bytes of each, and how many there are.
    first: usize,
    size: usize,
    n: usize,
    /// Of a field's value in it.
    value: usize,
}

impl Directory {
    /// None where the file has no such directory.
    pub(crate) fn first(content: &[u8]) -> Option<Self> {
        let is_little = content.starts_with(b"II");
        let number = |at: usize, bytes: usize| number(content, is_little, at, bytes);
        if number(2, 2)? == 43 {
            let start = number(8, 8)?;
            return Some(Self { is_little, first: start + 8, size: 20, n: number(start, 8)?, value: 12 });
        }
        let start = number(4, 4)?;
        Some(Self { is_little, first: start + 2, size: 12, n: number(start, 2)?, value: 8 })
    }

    /// The value of a field of 16 bits; none where there is no such field.
    pub(crate) fn short(&self, content: &[u8], tag: u16) -> Option<u16> {
        let at = self.place(content, tag)?;
        u16::try_from(number(content, self.is_little, at, 2)?).ok()
    }

    /// Changes a field of 16 bits that is there.
    pub(crate) fn set_short(&self, content: &mut [u8], tag: u16, value: u16) {
        if let Some(at) = self.place(content, tag)
            && let Some(place) = content.get_mut(at..at + 2)
        {
            place.copy_from_slice(&if self.is_little { value.to_le_bytes() } else { value.to_be_bytes() });
        }
    }

    fn place(&self, content: &[u8], tag: u16) -> Option<usize> {
        // A directory has some twenty fields; no file is searched further than it is long.
        for field in 0..self.n.min(content.len() / self.size) {
            let at = self.first.checked_add(field * self.size)?;
            let is_it = number(content, self.is_little, at, 2)? == usize::from(tag);
            if is_it && number(content, self.is_little, at + 2, 2)? == usize::from(SHORT) {
                return Some(at + self.value);
            }
        }
        None
    }
}

/// A number of so many bytes.
fn number(content: &[u8], is_little: bool, at: usize, bytes: usize) -> Option<usize> {
    let bytes = content.get(at..at.checked_add(bytes)?)?;
    let mut number = 0_usize;
    for at in 0..bytes.len() {
        let byte = if is_little { bytes[bytes.len() - 1 - at] } else { bytes[at] };
        number = number.checked_mul(256)? + usize::from(byte);
    }
    Some(number)
}
