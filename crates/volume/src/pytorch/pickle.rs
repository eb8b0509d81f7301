//! The part of Python's pickle format that files of `torch.save` need: values are put together, nothing is called.
//!
//! What a pickle wants to construct is known by name: tensors and ordered dicts are understood, everything else becomes
//! [`Value::Other`]. Lists and sets are not kept, since no tensor that has a name lies in one.

use super::values::{DICTS, Dict, Value, constructed, storage_of};
use std::collections::HashMap;
use std::rc::Rc;

/// Most values of a pickle: that of a network of ten thousand tensors has some 200,000.
const MAX_VALUES: usize = 4_000_000;

/// Deepest nesting of tuples: those of tensors have two levels.
const MAX_DEPTH: u32 = 64;

/// All dicts of a pickle. Each is emptied before any of them goes, since dicts that lie in each other a million levels deep would
/// overflow the stack.
#[derive(Debug, Default)]
struct Dicts(Vec<Rc<Dict>>);

impl Drop for Dicts {
    fn drop(&mut self) {
        for dict in &self.0 {
            dict.pairs.take();
        }
    }
}

/// What a pickle holds.
#[derive(Debug)]
pub(crate) struct Pickle {
    // Goes before what refers to it.
    _dicts: Dicts,
    pub(crate) root: Value,
}

/// Reads a pickle.
///
/// # Errors
/// One clause about what is wrong.
pub(crate) fn load(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine = Machine {
        dicts: Dicts::default(),
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        n_values: 0,
    };
    loop {
        let op = machine.take(1)?[0];
        if op == b'.' {
            let root = machine.pop()?;
            return Ok(Pickle { _dicts: std::mem::take(&mut machine.dicts), root });
        }
        machine.step(op)?;
        if machine.n_values > MAX_VALUES {
            return Err(format!("the pickle has more than {MAX_VALUES} values"));
        }
    }
}

struct Machine<'a> {
    // Goes before what refers to it.
    dicts: Dicts,
    n_values: usize,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len()).ok_or("the pickle is cut short")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of so many bytes.
    fn number(&mut self, n: usize) -> Result<u64, String> {
        Ok(self.take(n)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn sized(&mut self, n: usize) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.number(n)?).map_err(|_| "the pickle is cut short")?;
        self.take(length)
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("the pickle is cut short")?;
        let line = std::str::from_utf8(self.take(length)?).map_err(|_| "a name is not UTF-8")?;
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        self.n_values += 1;
        self.stack.push(value);
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "the pickle takes a value that is not there".to_owned())
    }

    /// What lies above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value>, String> {
        let height = self.marks.pop().filter(|height| *height <= self.stack.len());
        Ok(self.stack.split_off(height.ok_or("the pickle takes a mark that is not there")?))
    }

    fn push_text(&mut self, bytes: &[u8]) {
        // Python's own names may hold lone surrogates; names of tensors do not.
        self.push(Value::Text(String::from_utf8_lossy(bytes).into()));
    }

    fn push_dict(&mut self) {
        let dict = Rc::<Dict>::default();
        self.dicts.0.push(Rc::clone(&dict));
        self.push(Value::Dict(dict));
    }

    fn push_tuple(&mut self, values: Vec<Value>) -> Result<(), String> {
        let depth = deeper(values.iter())?;
        self.push(Value::Tuple(Rc::new((depth, values))));
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        let value = self.stack.last().cloned().ok_or("the pickle remembers a value that is not there")?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), String> {
        let value = u32::try_from(index).ok().and_then(|index| self.memo.get(&index).cloned());
        self.push(value.ok_or("the pickle recalls a value that is not there")?);
        Ok(())
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.stack.last().cloned().ok_or("the pickle doubles a value that is not there")?;
                self.push(top);
            }
            // Constants.
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }
            b'J' => {
                let number = self.number(4)? as u32;
                self.push(Value::Int(i64::from(number as i32)));
            }
            b'K' | b'M' => {
                let number = self.number(if op == b'K' { 1 } else { 2 })?;
                self.push(Value::Int(number as i64));
            }
            0x8a => self.push_long()?,
            b'X' | 0x8c | 0x8d => {
                let text = self.sized(match op {
                    b'X' => 4,
                    0x8c => 1,
                    _ => 8,
                })?;
                self.push_text(text);
            }
            b'T' | b'U' | b'B' | b'C' | 0x8e => {
                self.sized(match op {
                    b'T' | b'B' => 4,
                    0x8e => 8,
                    _ => 1,
                })?;
                self.push(Value::Other);
            }
            b'I' | b'L' | b'F' | b'S' | b'V' => {
                self.line()?;
                self.push(Value::Other);
            }
            _ => return self.step_container(op),
        }
        Ok(())
    }

    fn step_container(&mut self, op: u8) -> Result<(), String> {
        match op {
            b')' => self.push_tuple(Vec::new())?,
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let height = self.stack.len().checked_sub(n).ok_or("the pickle takes a value that is not there")?;
                let values = self.stack.split_off(height);
                self.push_tuple(values)?;
            }
            b't' => {
                let values = self.pop_mark()?;
                self.push_tuple(values)?;
            }
            b'}' => self.push_dict(),
            b'd' => {
                let pairs = self.pop_mark()?;
                self.push_dict();
                self.set_items(pairs)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let pairs = self.pop_mark()?;
                self.set_items(pairs)?;
            }
            // Lists and sets, whose items go.
            b']' | 0x8f => self.push(Value::Other),
            b'l' | 0x91 => {
                self.pop_mark()?;
                self.push(Value::Other);
            }
            b'a' => drop(self.pop()?),
            b'e' | 0x90 => drop(self.pop_mark()?),
            // The memo.
            b'q' | b'r' => {
                let index = self.number(if op == b'q' { 1 } else { 4 })?;
                self.remember(index as u32)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' | b'j' => {
                let index = self.number(if op == b'h' { 1 } else { 4 })?;
                self.recall(index)?;
            }
            _ => return self.step_object(op),
        }
        Ok(())
    }

    fn step_object(&mut self, op: u8) -> Result<(), String> {
        match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module}.{name}").into()));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(name), Value::Text(module)) = (name, module) else {
                    return Err("the name of a class is no text".to_owned());
                };
                self.push(Value::Global(format!("{module}.{name}").into()));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(storage_of(&id).map_or(Value::Other, Value::Storage));
            }
            b'R' | 0x81 => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                match &class {
                    Value::Global(class) if DICTS.contains(&&**class) => self.push_dict(),
                    _ => self.push(constructed(&class, &arguments)),
                }
            }
            0x92 => {
                for _ in 0..3 {
                    self.pop()?;
                }
                self.push(Value::Other);
            }
            // State of an object, which stays as it is.
            b'b' => drop(self.pop()?),
            _ => return Err(format!("the pickle has an instruction that is not known (0x{op:02x})")),
        }
        Ok(())
    }

    fn push_long(&mut self) -> Result<(), String> {
        let bytes = self.sized(1)?;
        if bytes.len() > 8 {
            self.push(Value::Other);
            return Ok(());
        }
        let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut number = [if is_negative { 0xff } else { 0 }; 8];
        number[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(number)));
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), String> {
        let Some(Value::Dict(dict)) = self.stack.last() else {
            // Of a class that is not known.
            return if self.stack.is_empty() { Err("the pickle fills a dict that is not there".to_owned()) } else { Ok(()) };
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            dict.pairs.borrow_mut().push((key, value));
        }
        Ok(())
    }
}

/// One level more than the deepest of some values: a value must not be nested so deep that dropping it overflows the stack.
fn deeper<'v>(values: impl Iterator<Item = &'v Value>) -> Result<u32, String> {
    let depth = values.map(|value| match value {
        Value::Tuple(tuple) => tuple.0,
        // Dicts are emptied before they go.
        _ => 0,
    });
    match depth.max().unwrap_or(0) + 1 {
        depth if depth <= MAX_DEPTH => Ok(depth),
        _ => Err(format!("the pickle is nested deeper than {MAX_DEPTH} levels")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_pickles_are_refused() {
        let deep = [b"\x80\x02)".as_slice(), &vec![0x85; 1_000_000], b"."].concat();
        assert!(load(&deep).unwrap_err().contains("nested"));
        let dicts = [b"\x80\x02}q\x00X\x01\0\0\0ah\x00s".as_slice(), &b"h\x00X\x01\0\0\0bh\x00s".repeat(100), b"."].concat();
        assert!(load(&dicts).is_ok(), "a dict inside of itself");
        // Each dict is put into the one above before it is filled: no level is deeper than the one before when it is made.
        let chain = [b"\x80\x02}q\x00".as_slice(), &b"h\x00K\x01}q\x00s0".repeat(500_000), b"}."].concat();
        assert!(load(&chain).is_ok(), "half a million levels");
        let many = [b"\x80\x02".as_slice(), &vec![b')'; MAX_VALUES + 1], b"."].concat();
        assert!(load(&many).unwrap_err().contains("values"));
        for bytes in [
            b"".as_slice(),
            b"\x80",
            b"\x80\x02",
            b"\x80\x02X\xff\xff\xff\xff",
            b"\x80\x02h\x05.",
            b"\x80\x02u.",
            b"\x80\x02\xff.",
        ] {
            assert!(load(bytes).is_err(), "{bytes:?}");
        }
        // os.system("…") is a value like others: it is not called.
        let call = b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.";
        assert!(matches!(load(call).unwrap().root, Value::Other));
    }
}
