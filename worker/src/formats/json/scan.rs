//! A strict scanner of JSON text (RFC 8259). It owns the grammar: strings, which are UTF-8 or refused, numbers, literals,
//! whitespace, and skipping of what nobody asked for. What a value means to a column is `columns`'.

use wide::u8x16;

use super::fault::Fault;

/// Deepest nesting of objects and arrays in a body, skipped ones included.
pub(super) const MAX_DEPTH: usize = 128;

type Scan<T> = Result<T, Box<Fault>>;

/// A position in one record's bytes.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A string's bytes between its quotes.
#[derive(Clone, Copy)]
pub(super) struct RawString<'a> {
    pub bytes: &'a [u8],
    /// `bytes` has escapes, all well formed; [`unescape`] resolves them.
    pub escaped: bool,
}

/// A number's text, of JSON's grammar.
#[derive(Clone, Copy)]
pub(super) struct RawNumber<'a> {
    pub text: &'a str,
    /// Neither fraction nor exponent.
    pub whole: bool,
}

/// Index of the first quote, backslash or control character at or after `from`, the length if there is none; and whether all
/// bytes before it are ASCII.
#[inline]
pub(super) fn find_special(bytes: &[u8], from: usize) -> (usize, bool) {
    let (mut i, mut high) = (from, 0);
    while let Some(block) = bytes.get(i..).and_then(<[u8]>::first_chunk) {
        let (found, not_ascii) = specials(block);
        if found != 0 {
            // Those before the lowest bit that was found.
            high |= not_ascii & (found ^ (found - 1));
            return (i + found.trailing_zeros() as usize, high == 0);
        }
        high |= not_ascii;
        i += BLOCK;
    }
    while i < bytes.len() && !special(bytes[i]) {
        high |= u32::from(bytes[i] & 0x80);
        i += 1;
    }
    (i, high == 0)
}

#[inline]
fn special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

const BLOCK: usize = 16;

/// A bit for each special byte of a block, and for each that is not ASCII.
#[inline]
fn specials(block: &[u8; BLOCK]) -> (u32, u32) {
    let block = u8x16::from(*block);
    let quote = block.simd_eq(u8x16::splat(b'"'));
    let slash = block.simd_eq(u8x16::splat(b'\\'));
    let control = block.min(u8x16::splat(0x1f)).simd_eq(block);
    ((quote | slash | control).to_bitmask(), block.to_bitmask())
}

/// Whether slices of the same length are equal. Names are short: two words that may overlap need no call.
#[inline]
fn equal(a: &[u8], b: &[u8]) -> bool {
    let word = |s: &[u8]| s.try_into().map_or(0, u64::from_le_bytes);
    match a.len() {
        n @ 8..=16 => word(&a[..8]) == word(&b[..8]) && word(&a[n - 8..]) == word(&b[n - 8..]),
        n @ 17..=32 => {
            let word = |s: &[u8]| s.try_into().map_or(0, u128::from_le_bytes);
            word(&a[..16]) == word(&b[..16]) && word(&a[n - 16..]) == word(&b[n - 16..])
        }
        n @ 4..8 => {
            let word = |s: &[u8]| s.try_into().map_or(0, u32::from_le_bytes);
            word(&a[..4]) == word(&b[..4]) && word(&a[n - 4..]) == word(&b[n - 4..])
        }
        _ => a == b,
    }
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn slice_from(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.at]
    }

    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub fn advance(&mut self) {
        self.at += 1;
    }

    #[inline]
    pub fn whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    pub fn unexpected(&self, expected: &'static str) -> Box<Fault> {
        Fault::syntax(self.bytes, self.at, expected)
    }

    #[inline]
    pub fn expect(&mut self, byte: u8, expected: &'static str) -> Scan<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    /// Takes `text` if it comes next.
    #[inline]
    pub fn eat(&mut self, text: &[u8]) -> bool {
        let found = self
            .bytes
            .get(self.at..self.at + text.len())
            .is_some_and(|next| equal(next, text));
        if found {
            self.at += text.len();
        }
        found
    }

    pub fn literal(&mut self, text: &'static str) -> Scan<()> {
        if self.eat(text.as_bytes()) {
            Ok(())
        } else {
            Err(self.unexpected("a value"))
        }
    }

    /// The rest of a string whose opening quote was taken; takes the closing one.
    #[inline]
    pub fn string(&mut self) -> Scan<RawString<'a>> {
        let start = self.at;
        let (mut escaped, mut ascii) = (false, true);
        loop {
            let (at, plain) = find_special(self.bytes, self.at);
            self.at = at;
            ascii &= plain;
            match self.peek() {
                Some(b'"') => {
                    let bytes = &self.bytes[start..self.at];
                    if !ascii && let Err(e) = std::str::from_utf8(bytes) {
                        return Err(Fault::utf8(start + e.valid_up_to()));
                    }
                    self.at += 1;
                    return Ok(RawString { bytes, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return Err(self.unexpected("the end of a string")),
            }
        }
    }

    fn escape(&mut self) -> Scan<()> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u')
                if self
                    .bytes
                    .get(self.at + 2..self.at + 6)
                    .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) =>
            {
                self.at += 6;
                Ok(())
            }
            _ => Err(self.unexpected("an escape sequence")),
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }

    pub fn number(&mut self) -> Scan<RawNumber<'a>> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => {
                self.digits();
            }
            _ => return Err(self.unexpected("a value")),
        }
        let mut whole = true;
        if self.peek() == Some(b'.') {
            whole = false;
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.unexpected("a digit"));
            }
        }
        if let Some(b'e' | b'E') = self.peek() {
            whole = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.unexpected("a digit"));
            }
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at])
            .expect("the characters of a number are ASCII");
        Ok(RawNumber { text, whole })
    }

    /// A whole number of at most 18 digits, the common case, without making its text; else nothing is taken.
    #[inline]
    pub fn short_integer(&mut self) -> Option<i64> {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        let mut i = start + usize::from(negative);
        let first = i;
        let mut value = 0i64;
        while let Some(&b @ b'0'..=b'9') = self.bytes.get(i) {
            if i - first == 18 {
                return None;
            }
            value = value * 10 + i64::from(b - b'0');
            i += 1;
        }
        let digits = i - first;
        let leading_zero = digits > 1 && self.bytes[first] == b'0';
        if digits == 0 || leading_zero || matches!(self.bytes.get(i), Some(b'.' | b'e' | b'E')) {
            return None;
        }
        self.at = i;
        Some(if negative { -value } else { value })
    }

    /// Checks and passes one value, whatever it is. `depth`: objects and arrays it already lies in.
    pub fn skip(&mut self, depth: usize) -> Scan<()> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.string().map(|_| ())
            }
            Some(b'n') => self.literal("null"),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'{') => self.skip_object(depth),
            Some(b'[') => {
                self.enter(depth)?;
                if self.close(b']') {
                    return Ok(());
                }
                loop {
                    self.skip(depth + 1)?;
                    if !self.more(b']', "a comma or the end of an array")? {
                        return Ok(());
                    }
                }
            }
            _ if self.short_integer().is_some() => Ok(()),
            _ => self.number().map(|_| ()),
        }
    }

    fn skip_object(&mut self, depth: usize) -> Scan<()> {
        self.enter(depth)?;
        if self.close(b'}') {
            return Ok(());
        }
        loop {
            self.expect(b'"', "a name")?;
            self.string()?;
            self.colon()?;
            self.skip(depth + 1)?;
            if !self.more(b'}', "a comma or the end of an object")? {
                return Ok(());
            }
        }
    }

    /// Takes an opening bracket that was peeked, and the whitespace after it.
    pub fn enter(&mut self, depth: usize) -> Scan<()> {
        if depth >= MAX_DEPTH {
            return Err(Fault::depth(self.at));
        }
        self.at += 1;
        self.whitespace();
        Ok(())
    }

    /// Takes the closing bracket if it comes at once.
    pub fn close(&mut self, bracket: u8) -> bool {
        let closed = self.peek() == Some(bracket);
        if closed {
            self.at += 1;
        }
        closed
    }

    #[inline]
    pub fn colon(&mut self) -> Scan<()> {
        self.whitespace();
        self.expect(b':', "a colon")?;
        self.whitespace();
        Ok(())
    }

    /// After an element: true if a comma was taken, false if the closing bracket was.
    #[inline]
    pub fn more(&mut self, bracket: u8, expected: &'static str) -> Scan<bool> {
        self.whitespace();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.whitespace();
                Ok(true)
            }
            Some(b) if b == bracket => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.unexpected(expected)),
        }
    }

    /// Nothing but whitespace may follow.
    pub fn end(&mut self) -> Scan<()> {
        self.whitespace();
        if self.at < self.bytes.len() {
            return Err(self.unexpected("the end of the record"));
        }
        Ok(())
    }
}

/// Appends the text of a string with escapes. Fails on a lone surrogate, which is no character.
pub(super) fn unescape(raw: &[u8], out: &mut Vec<u8>) -> Scan<()> {
    let mut rest = raw;
    while let Some(slash) = rest.iter().position(|b| *b == b'\\') {
        out.extend_from_slice(&rest[..slash]);
        let (plain, used) = match rest[slash + 1] {
            b'b' => (8, 2),
            b'f' => (12, 2),
            b'n' => (b'\n', 2),
            b'r' => (b'\r', 2),
            b't' => (b'\t', 2),
            b'u' => {
                let (c, used) = unicode(&rest[slash..])?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[slash + used..];
                continue;
            }
            other => (other, 2),
        };
        out.push(plain);
        rest = &rest[slash + used..];
    }
    out.extend_from_slice(rest);
    Ok(())
}

/// `\uXXXX` or a surrogate pair of them, and its length.
fn unicode(escape: &[u8]) -> Scan<(char, usize)> {
    let unit = |at: usize| {
        let hex = escape.get(at + 2..at + 6)?;
        if escape.get(at..at + 2)? != b"\\u" {
            return None;
        }
        u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    let high = unit(0);
    if let Some(c) = high.and_then(|unit| char::from_u32(u32::from(unit))) {
        return Ok((c, 6));
    }
    let pair = [high, unit(6)].into_iter().flatten();
    match char::decode_utf16(pair).next() {
        Some(Ok(c)) => Ok((c, 12)),
        _ => Err(Fault::surrogate()),
    }
}
