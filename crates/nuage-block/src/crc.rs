//! CRC-32C (Castagnoli), of blocks and of what travels.
//!
//! Long runs are folded 256 bytes at a time by carry-less multiplication where the processor has it for 512 bits:
//! four times what its own CRC instruction gives, which does the rest (Gopal et al., Fast CRC Computation for
//! Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009).

/// Checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// Checksum of what has the checksum `crc` with `bytes` behind it.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= folding::STRIDE_BYTES && folding::is_there() {
        // SAFETY: the processor has what the function uses.
        return unsafe { folding::crc32c_append(crc, bytes) };
    }
    crc32c::crc32c_append(crc, bytes)
}

#[cfg(target_arch = "x86_64")]
mod folding {
    use std::arch::x86_64::{
        __m128i, __m512i, _mm_clmulepi64_si128, _mm_crc32_u64, _mm_cvtsi32_si128,
        _mm_extract_epi64, _mm_set_epi64x, _mm_xor_si128, _mm512_broadcast_i32x4,
        _mm512_clmulepi64_epi128, _mm512_extracti32x4_epi32, _mm512_loadu_si512,
        _mm512_ternarylogic_epi64, _mm512_xor_si512, _mm512_zextsi128_si512,
    };

    const LANE_BYTES: usize = 64;
    pub(super) const STRIDE_BYTES: usize = 4 * LANE_BYTES;
    /// Reversed, as all of the checksum is.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    /// a ⊕ b ⊕ c, as a truth table.
    const XOR: i32 = 0x96;

    pub(super) fn is_there() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("sse4.2")
    }

    /// x to the power of `exponent`, modulo the polynomial.
    const fn power(exponent: u32) -> i64 {
        let mut power = 1 << 31;
        let mut at = 0;
        while at < exponent {
            let carry = if power & 1 == 1 { POLYNOMIAL } else { 0 };
            power = (power >> 1) ^ carry;
            at += 1;
        }
        power as i64
    }

    /// What moves both halves of 16 bytes on by as many bytes.
    #[target_feature(enable = "sse2")]
    fn step<const BYTES: u32>() -> __m128i {
        let (high, low) = const { (power(8 * BYTES - 33), power(8 * BYTES + 31)) };
        _mm_set_epi64x(high, low)
    }

    #[target_feature(enable = "avx512f,vpclmulqdq")]
    fn fold(lane: __m512i, step: __m512i, next: __m512i) -> __m512i {
        let low = _mm512_clmulepi64_epi128::<0x00>(lane, step);
        let high = _mm512_clmulepi64_epi128::<0x11>(lane, step);
        _mm512_ternarylogic_epi64::<XOR>(low, high, next)
    }

    #[target_feature(enable = "pclmulqdq")]
    fn fold_quarter(quarter: __m128i, step: __m128i, next: __m128i) -> __m128i {
        let low = _mm_clmulepi64_si128::<0x00>(quarter, step);
        let high = _mm_clmulepi64_si128::<0x11>(quarter, step);
        _mm_xor_si128(_mm_xor_si128(low, high), next)
    }

    #[target_feature(enable = "avx512f")]
    fn lanes(stride: &[u8; STRIDE_BYTES]) -> [__m512i; 4] {
        let (lanes, _) = stride.as_chunks::<LANE_BYTES>();
        // SAFETY: each lane is 64 bytes, at any address.
        let load = |lane: &[u8; LANE_BYTES]| unsafe { _mm512_loadu_si512(lane.as_ptr().cast()) };
        [
            load(&lanes[0]),
            load(&lanes[1]),
            load(&lanes[2]),
            load(&lanes[3]),
        ]
    }

    /// `bytes` are a stride at least.
    #[target_feature(enable = "avx512f,vpclmulqdq,pclmulqdq,sse4.2")]
    pub(super) fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
        let (strides, rest) = bytes.as_chunks::<STRIDE_BYTES>();
        let begun = _mm512_zextsi128_si512(_mm_cvtsi32_si128((!crc).cast_signed()));
        let mut sums = lanes(&strides[0]);
        sums[0] = _mm512_xor_si512(sums[0], begun);
        let by_stride = _mm512_broadcast_i32x4(step::<256>());
        for stride in &strides[1..] {
            for (sum, next) in sums.iter_mut().zip(lanes(stride)) {
                *sum = fold(*sum, by_stride, next);
            }
        }
        let by_lane = _mm512_broadcast_i32x4(step::<64>());
        let [mut lane, second, third, fourth] = sums;
        for next in [second, third, fourth] {
            lane = fold(lane, by_lane, next);
        }
        let by_quarter = step::<16>();
        let mut quarter = _mm512_extracti32x4_epi32::<0>(lane);
        for next in [
            _mm512_extracti32x4_epi32::<1>(lane),
            _mm512_extracti32x4_epi32::<2>(lane),
            _mm512_extracti32x4_epi32::<3>(lane),
        ] {
            quarter = fold_quarter(quarter, by_quarter, next);
        }
        let low = _mm_extract_epi64::<0>(quarter).cast_unsigned();
        let high = _mm_extract_epi64::<1>(quarter).cast_unsigned();
        let sum = _mm_crc32_u64(_mm_crc32_u64(0, low), high);
        #[allow(clippy::cast_possible_truncation)] // its upper half is zero
        ::crc32c::crc32c_append(!(sum as u32), rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bit at a time.
    fn slowly(crc: u32, bytes: &[u8]) -> u32 {
        let mut sum = !crc;
        for byte in bytes {
            sum ^= u32::from(*byte);
            for _ in 0..8 {
                sum = (sum >> 1) ^ (if sum & 1 == 1 { 0x82f6_3b78 } else { 0 });
            }
        }
        !sum
    }

    #[test]
    fn it_is_that_of_iscsi() {
        // RFC 7143 appendix A.4 (its digests are in the order of the wire).
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn runs_of_all_lengths_have_the_sum_that_bits_give_wherever_they_begin() {
        let bytes: Vec<u8> = (0..2000u32)
            .map(|at| (at * at / 7 + at).to_le_bytes()[0])
            .collect();
        for from in [0, 1, 63] {
            for length in (0..1100).chain([1279, 1280, 1281, 1900]) {
                let run = &bytes[from..from + length];
                assert_eq!(
                    crc32c_append(7, run),
                    slowly(7, run),
                    "{length} from {from}"
                );
            }
        }
    }

    #[test]
    fn parts_add_up() {
        let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
        for cut in [0, 3, 24, 255, 256, 1000, 4096] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(crc32c_append(crc32c(head), tail), crc32c(&bytes));
        }
    }
}
