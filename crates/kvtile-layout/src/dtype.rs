//! Data types under the names that frameworks give them.
//!
//! This module knows names and widths. It does not know which types an engine or a device supports.

use crate::near::nearest;

/// A data type: its codec, bytes and values of a unit, and its other names in torch, numpy,
/// ml_dtypes, Hugging Face configs, safetensors and vLLM.
struct Dtype(&'static str, u64, u64, &'static [&'static str]);

const DTYPES: &[Dtype] = &[
    Dtype("f64", 8, 1, &["float64", "double", "fp64", "<f8"]),
    Dtype("f32", 4, 1, &["float32", "float", "fp32", "<f4"]),
    Dtype("f16", 2, 1, &["float16", "half", "fp16", "<f2"]),
    Dtype("bf16", 2, 1, &["bfloat16"]),
    Dtype(
        "fp8_e4m3",
        1,
        1,
        &["float8_e4m3fn", "fp8_e4m3fn", "f8_e4m3", "f8_e4m3fn", "fp8"],
    ),
    Dtype("fp8_e5m2", 1, 1, &["float8_e5m2", "f8_e5m2"]),
    Dtype("fp8_e4m3fnuz", 1, 1, &["float8_e4m3fnuz", "f8_e4m3fnuz"]),
    Dtype("fp8_e5m2fnuz", 1, 1, &["float8_e5m2fnuz", "f8_e5m2fnuz"]),
    // The variant with infinities; torch and engines use the one without.
    Dtype("fp8_e4m3_ieee", 1, 1, &["float8_e4m3"]),
    Dtype(
        "fp4_e2m1",
        1,
        2,
        &["float4_e2m1fn", "float4_e2m1fn_x2", "fp4"],
    ),
    Dtype("int64", 8, 1, &["i64", "long", "<i8"]),
    Dtype("int32", 4, 1, &["i32", "<i4"]),
    Dtype("int16", 2, 1, &["i16", "short", "<i2"]),
    Dtype("int8", 1, 1, &["i8", "|i1"]),
    Dtype("int4", 1, 2, &[]),
    Dtype("uint64", 8, 1, &["u64", "<u8"]),
    Dtype("uint32", 4, 1, &["u32", "<u4"]),
    Dtype("uint16", 2, 1, &["u16", "<u2"]),
    Dtype("uint8", 1, 1, &["u8", "|u1"]),
    Dtype("uint4", 1, 2, &[]),
    Dtype("bool", 1, 1, &["|b1"]),
    Dtype("complex64", 8, 1, &["<c8"]),
    Dtype("complex128", 16, 1, &["<c16"]),
    Dtype("q8_0", 34, 32, &[]),
    Dtype("q4_0", 18, 32, &[]),
    Dtype("q4_1", 20, 32, &[]),
];

/// Codec, bytes and values of the data type called `name`. Case does not count, and a module prefix
/// such as `torch.` is allowed.
pub(crate) fn known(name: &str) -> Option<(&'static str, u64, u64)> {
    let name = bare(name);
    let found = DTYPES
        .iter()
        .find(|dtype| dtype.0 == name || dtype.3.contains(&name.as_str()));
    found.map(|Dtype(codec, bytes, values, _)| (*codec, *bytes, *values))
}

/// The advice for `name`, which is not a data type.
pub(crate) fn advice(name: &str) -> String {
    let name = bare(name);
    if name == "auto" {
        return "auto stands for the model's own type; give that, for instance bfloat16".to_owned();
    }
    let names = DTYPES
        .iter()
        .flat_map(|dtype| [dtype.0].into_iter().chain(dtype.3.iter().copied()));
    let close = nearest(&name, names);
    match close.as_slice() {
        [] => "give float32, float16, bfloat16, fp8_e4m3, fp8_e5m2, int8, int4, q8_0, q4_0 or the like"
            .to_owned(),
        close => format!("did you mean {}?", close.join(" or ")),
    }
}

/// `torch.bfloat16` and `BF16` in the spelling of the table.
fn bare(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    last.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_belongs_to_one_type() {
        let mut names: Vec<&str> = Vec::new();
        for dtype in DTYPES {
            for name in [dtype.0].into_iter().chain(dtype.3.iter().copied()) {
                assert!(!names.contains(&name), "{name} twice");
                assert_eq!(known(name), Some((dtype.0, dtype.1, dtype.2)));
                names.push(name);
            }
        }
    }

    #[test]
    fn types_go_by_the_names_of_every_framework() {
        for (name, codec) in [
            ("bfloat16", "bf16"),
            ("torch.bfloat16", "bf16"),
            ("BF16", "bf16"),
            ("jnp.float16", "f16"),
            ("half", "f16"),
            ("float32", "f32"),
            ("<f4", "f32"),
            ("fp8", "fp8_e4m3"),
            ("torch.float8_e4m3fn", "fp8_e4m3"),
            ("F8_E5M2", "fp8_e5m2"),
            ("Q8_0", "q8_0"),
        ] {
            assert_eq!(known(name).map(|found| found.0), Some(codec), "{name}");
        }
        for name in ["", "f33", ">f4", "torch.", "loat", "auto"] {
            assert_eq!(known(name), None, "{name}");
        }
    }

    #[test]
    fn unknown_names_get_a_suggestion() {
        assert_eq!(advice("float33"), "did you mean float32?");
        assert_eq!(advice("bflaot16"), "did you mean bfloat16?");
        assert!(advice("auto").starts_with("auto stands for"));
        assert!(advice("nonsense").starts_with("give float32"));
    }
}
