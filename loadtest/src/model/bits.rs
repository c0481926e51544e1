//! States as short runs of bits: small numbers take the bits they need.
//!
//! What is written and what is read is described once, by a function that walks through a state with [`Bits`]: a
//! [`Writer`] takes each number from it, a [`Reader`] puts it there.

/// One of the two directions.
pub trait Bits {
    /// The next `width` bits, at most 56.
    fn bits(&mut self, value: &mut u64, width: u32);

    /// A small number.
    fn small(&mut self, value: &mut u8, width: u32) {
        let mut wide = (*value).into();
        self.bits(&mut wide, width);
        *value = wide as u8;
    }

    /// A truth.
    fn flag(&mut self, value: &mut bool) {
        let mut wide = (*value).into();
        self.bits(&mut wide, 1);
        *value = wide == 1;
    }
}

/// Writes numbers one behind the other.
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    held: u64,
    count: u32,
}

impl<'a> Writer<'a> {
    /// Behind what is in `bytes`.
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, held: 0, count: 0 }
    }

    /// Fills the last byte.
    pub fn finish(self) {
        if self.count > 0 {
            self.bytes.push(self.held as u8);
        }
    }
}

impl Bits for Writer<'_> {
    fn bits(&mut self, value: &mut u64, width: u32) {
        debug_assert!(width <= 56 && *value >> width == 0, "{value} does not fit into {width} bits");
        self.held |= *value << self.count;
        self.count += width;
        while self.count >= 8 {
            self.bytes.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }
}

/// Reads them again.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: std::slice::Iter<'a, u8>,
    held: u64,
    count: u32,
}

impl<'a> Reader<'a> {
    /// From the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.iter(), held: 0, count: 0 }
    }
}

impl Bits for Reader<'_> {
    fn bits(&mut self, value: &mut u64, width: u32) {
        while self.count < width {
            self.held |= u64::from(self.bytes.next().copied().unwrap_or(0)) << self.count;
            self.count += 8;
        }
        *value = self.held & ((1 << width) - 1);
        self.held >>= width;
        self.count -= width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_comes_back() {
        let numbers = [(1, 1), (0, 3), (5, 3), (0, 0), (300, 9), ((1 << 56) - 1, 56), (2, 2), (1, 1)];
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        for (value, width) in numbers {
            writer.bits(&mut { value }, width);
        }
        writer.finish();
        assert_eq!(bytes.len(), 10);
        let mut reader = Reader::new(&bytes);
        for (expected, width) in numbers {
            let mut value = 7;
            reader.bits(&mut value, width);
            assert_eq!(value, expected);
        }
    }
}
