//! The framing of an event file (TensorFlow's TFRecord): for every record the length of its data as a u64, a checksum of these
//! eight bytes, the data, and a checksum of the data; all numbers little-endian.

use crc::{CRC_32_ISCSI, Crc};

/// CRC-32C, which the catalogue of CRCs calls by the first standard that used it.
static CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Adds a record to the end of a file.
pub fn push(file: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    file.extend_from_slice(&length);
    file.extend_from_slice(&masked(&length).to_le_bytes());
    file.extend_from_slice(data);
    file.extend_from_slice(&masked(data).to_le_bytes());
}

/// The checksum as the format has it: turned and shifted, so that data which holds checksums is no special case.
fn masked(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The data of all records of a file whose checksums are right; panics otherwise.
#[cfg(test)]
pub fn read(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while !file.is_empty() {
        let (length, rest) = file.split_at(8);
        let (length_sum, rest) = rest.split_at(4);
        assert_eq!(masked(length).to_le_bytes(), length_sum);
        let (data, rest) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let (data_sum, rest) = rest.split_at(4);
        assert_eq!(masked(data).to_le_bytes(), data_sum);
        records.push(data.to_vec());
        file = rest;
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_masked_crc32c() {
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
        assert_eq!(masked(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn records_are_framed_and_come_back() {
        let mut file = Vec::new();
        push(&mut file, b"123456789");
        assert_eq!(file[..8], 9_u64.to_le_bytes());
        assert_eq!(file[21..], 0xc78a_b0e5_u32.to_le_bytes());
        push(&mut file, b"");
        assert_eq!(read(&file), [b"123456789".to_vec(), Vec::new()]);
    }
}
