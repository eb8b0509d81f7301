//! File names as text, without loss: names of files need not be UTF-8, JSON and CSV for other programs must be.
//!
//! Bytes that are no UTF-8 become `\xNN`; a backslash before an x becomes `\x5c`, so that every name has one text, and every text one
//! name. All other names stay as they are.

use std::borrow::Cow;

/// The text of a name.
pub fn escape(name: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(name)
        && !text.contains("\\x")
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(name.len() + 8);
    for chunk in name.utf8_chunks() {
        text.push_str(&chunk.valid().replace("\\x", "\\x5cx"));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    Cow::Owned(text)
}

/// The name of a text.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match escaped_byte(&text[at..]) {
            Some(byte) => {
                name.push(byte);
                at += 4;
            }
            None => {
                name.push(text[at]);
                at += 1;
            }
        }
    }
    name
}

/// The byte of `\xNN`, if that is how a text begins.
fn escaped_byte(text: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(text.strip_prefix(b"\\x")?.get(..2)?).ok()?;
    if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_survives_as_text_of_its_own() {
        let names: [&[u8]; 8] =
            [b"a.png", "ünï.png".as_bytes(), b"caf\xe9.png", b"caf\xff.png", b"back\\slash", b"a\\xff.png", b"\\x5c", b"\xc3"];
        for name in names {
            assert_eq!(unescape(escape(name).as_bytes()), name, "{}", escape(name));
        }
        assert_eq!(escape(b"caf\xe9.png"), "caf\\xe9.png");
        assert_eq!(escape(b"a\\xff.png"), "a\\x5cxff.png");
        assert_eq!(escape(b"back\\slash"), "back\\slash");
    }
}
