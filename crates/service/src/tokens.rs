//! Bearer tokens: given by file, so that they stand in no list of processes, and read anew when the file has changed.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tonic::metadata::{Ascii, MetadataValue};

/// A file whose text is a token.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    /// The token, and the file's time when it was read.
    read: Arc<Mutex<Option<(SystemTime, String)>>>,
}

impl TokenFile {
    /// A token that is there now.
    ///
    /// # Errors
    /// One clause that names the file, when it cannot be read or holds no token.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, String> {
        let file = Self { path: path.into(), read: Arc::default() };
        file.token().map(|_| file)
    }

    /// The token as the file has it now.
    ///
    /// # Errors
    /// As [`TokenFile::new`].
    pub fn token(&self) -> Result<String, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.path.display());
        let changed = fs::metadata(&self.path).and_then(|file| file.modified()).map_err(failed)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((time, token)) = read.as_ref()
            && *time == changed
        {
            return Ok(token.clone());
        }
        let text = fs::read_to_string(&self.path).map_err(failed)?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{} holds no token of plain characters", self.path.display()));
        }
        *read = Some((changed, token.to_owned()));
        Ok(token.to_owned())
    }

    /// Whether that is the token, in a time that tells nothing of how much of it is right.
    ///
    /// # Errors
    /// As [`TokenFile::new`].
    pub fn is(&self, offered: &str) -> Result<bool, String> {
        // The equality of these hashes takes constant time.
        Ok(blake3::hash(self.token()?.as_bytes()) == blake3::hash(offered.as_bytes()))
    }

    /// The value of a call's `authorization`.
    ///
    /// # Errors
    /// As [`TokenFile::new`].
    pub fn authorization(&self) -> Result<MetadataValue<Ascii>, String> {
        format!("Bearer {}", self.token()?).parse().map_err(|_| format!("{} holds no token", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_anew_when_its_file_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let put = |text: &str, seconds: u64| {
            deepcluster_volume::publish::publish_bytes(&path, text.as_bytes()).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        assert!(TokenFile::new(&path).unwrap_err().contains("token: No such file"));
        put("\n", 1);
        assert!(TokenFile::new(&path).unwrap_err().contains("holds no token"));
        put("one\n", 2);
        let token = TokenFile::new(&path).unwrap();
        assert!(token.is("one").unwrap() && !token.is("on").unwrap() && !token.is("").unwrap());
        put("two", 3);
        assert!(!token.is("one").unwrap() && token.is("two").unwrap());
        assert_eq!(token.authorization().unwrap(), "Bearer two");
    }
}
