//! Base64 (RFC 4648, section 4), which JSON uses for BINARY: the standard alphabet, padding optional when read.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

const fn reverse() -> [u8; 256] {
    let mut table = [0xff; 256];
    let mut i = 0;
    while i < 64 {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
}

const REVERSE: [u8; 256] = reverse();

/// Appends the bytes that `text` stands for; `None` (and some bytes, perhaps) if it stands for none.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let end = text.len()
        - text
            .iter()
            .rev()
            .take(2)
            .take_while(|b| **b == b'=')
            .count();
    for group in text[..end].chunks(4) {
        let mut bits = 0u32;
        for b in group {
            let six = REVERSE[*b as usize];
            if six == 0xff {
                return None;
            }
            bits = bits << 6 | u32::from(six);
        }
        let bytes = (bits << (6 * (4 - group.len()))).to_be_bytes();
        match group.len() {
            1 => return None,
            n => out.extend_from_slice(&bytes[1..n]),
        }
    }
    Some(())
}

/// Appends the text of `bytes`, padded.
pub(super) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(padded);
        for i in 0..4 {
            let six = (bits >> (18 - 6 * i)) & 0x3f;
            out.push(if i <= group.len() {
                ALPHABET[six as usize]
            } else {
                b'='
            });
        }
    }
}
