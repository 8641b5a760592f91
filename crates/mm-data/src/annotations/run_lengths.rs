//! COCO's run lengths: how many pixels are off, then on, then off, down one column after the other.

use super::mask::Mask;
use crate::RecordError;

/// Reads the compressed form.
///
/// Each number is a run of characters `0` to `o`, which stand for 0 to 63: five bits, the lowest first, and a sixth
/// that says whether more follow. It is in two's complement, and from the fourth number on the difference to the last
/// but one.
///
/// # Errors
/// When another character stands there, the text ends within a number, or a run is negative or of 2^32 pixels.
pub(crate) fn decompress(text: &str) -> Result<Vec<u32>, RecordError> {
    /// Bits of a number, which holds any difference of two runs.
    const MAX_BITS: u32 = 35;
    let mut counts: Vec<u32> = Vec::new();
    let (mut value, mut bits) = (0_i64, 0);
    for (position, byte) in text.bytes().enumerate() {
        let broken = |reason| RecordError::RunText { position, reason };
        let digit = byte.checked_sub(b'0').filter(|&digit| digit < 64);
        let digit = digit.ok_or_else(|| broken("it is none of the characters 0 to o"))?;
        value |= i64::from(digit & 31) << bits;
        bits += 5;
        if digit & 32 != 0 {
            if bits >= MAX_BITS {
                return Err(broken("the number is too long"));
            }
            continue;
        }
        if digit & 16 != 0 {
            value |= -1 << bits;
        }
        if counts.len() > 2 {
            value += i64::from(counts[counts.len() - 2]);
        }
        counts.push(u32::try_from(value).map_err(|_| broken("the run is negative or too long"))?);
        (value, bits) = (0, 0);
    }
    if bits > 0 {
        return Err(RecordError::RunText { position: text.len(), reason: "it ends within a number" });
    }
    Ok(counts)
}

/// Turns on the runs that are on.
///
/// # Errors
/// When the runs cover more or fewer pixels than the mask has.
pub(crate) fn fill(mask: &mut Mask, counts: &[u32]) -> Result<(), RecordError> {
    let expected = u64::from(mask.width()) * u64::from(mask.height());
    let got = counts.iter().map(|&count| u64::from(count)).sum();
    if got != expected {
        return Err(RecordError::RunLengths { expected, got });
    }
    let mut start = 0;
    for (number, &count) in counts.iter().enumerate() {
        let end = start + count as usize;
        if number % 2 == 1 {
            mask.fill(start, end);
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Five columns of four pixels.
    fn drawn(counts: &[u32]) -> Result<Vec<String>, RecordError> {
        let mut mask = Mask::empty(5, 4);
        fill(&mut mask, counts)?;
        Ok(mask.drawn())
    }

    #[test]
    fn runs_go_down_the_columns() {
        assert_eq!(drawn(&[5, 2, 2, 3, 8]).unwrap(), [".....", ".##..", ".##..", "..#.."]);
        assert_eq!(drawn(&[0, 1, 3, 1, 14, 1]).unwrap(), ["##...", ".....", ".....", "....#"]);
        assert_eq!(drawn(&[20]).unwrap(), ["....."; 4]);
    }

    #[test]
    fn runs_must_cover_the_mask() {
        let error = drawn(&[5, 2, 2]).unwrap_err().to_string();
        assert!(error.contains("9 pixels") && error.contains("20"), "{error}");
        let error = drawn(&[0, u32::MAX, u32::MAX]).unwrap_err().to_string();
        assert!(error.contains("8589934590"), "{error}");
    }

    #[test]
    fn compressed_numbers() {
        // 5, 2, 2, then 3 - 2 and 8 - 2.
        assert_eq!(decompress("52216").unwrap(), [5, 2, 2, 3, 8]);
        // As pycocotools writes them, the last with differences below 0.
        assert_eq!(decompress("T37X6LZ?").unwrap(), [100, 7, 200, 3, 690]);
        assert_eq!(decompress(":d?X1`C\\OV7").unwrap(), [10, 500, 40, 100, 20, 330]);
        assert!(decompress("").unwrap().is_empty());
    }

    #[test]
    fn broken_text() {
        for (text, position, reason) in [
            ("52 16", 2, "none of the characters"),
            ("5p", 1, "none of the characters"),
            ("52T", 3, "ends within"),
            ("5PPPPPPP0", 7, "too long"),
            ("O", 0, "negative"),
            ("212O0N", 5, "negative"),
        ] {
            let error = decompress(text).unwrap_err().to_string();
            assert!(
                error.contains(&format!("character {position}")) && error.contains(reason),
                "{text}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-o]{0,40}") {
            if let Ok(counts) = decompress(&text) {
                prop_assert!(counts.len() <= text.len());
            }
        }
    }
}
