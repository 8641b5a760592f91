//! Bits of floats as integers in the order of `total_cmp`, and back: each function is its own inverse.

pub(crate) fn of_i32(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

pub(crate) fn of_i64(bits: i64) -> i64 {
    bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_and_their_integers_have_one_order() {
        let values = [f32::NEG_INFINITY, -2.5, -0.0, 0.0, f32::MIN_POSITIVE, 7.0, f32::INFINITY, f32::NAN];
        for a in values {
            let key = of_i32(a.to_bits().cast_signed());
            assert_eq!(of_i32(key).cast_unsigned(), a.to_bits());
            for b in values {
                let other = of_i32(b.to_bits().cast_signed());
                assert_eq!(key.cmp(&other), a.total_cmp(&b), "{a} and {b}");
                let [a, b] = [f64::from(a), f64::from(b)];
                let wide = |value: f64| of_i64(value.to_bits().cast_signed());
                assert_eq!(wide(a).cmp(&wide(b)), a.total_cmp(&b), "{a} and {b}");
                assert_eq!(of_i64(wide(a)).cast_unsigned(), a.to_bits());
            }
        }
    }
}
