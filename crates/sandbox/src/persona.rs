//! The people behind the users: what one account or another may learn of them, the same on every run.

use crate::account::digest;

const NICKNAMES: [&str; 8] = [
    "李雷",
    "韩梅梅",
    "王小明",
    "Alice 😀",
    "张伟",
    "陈静",
    "O'Brien & <Söhne>",
    "刘洋",
];

pub(crate) fn nickname(union_id: &str) -> &'static str {
    let [first, ..] = number(union_id).to_be_bytes();
    NICKNAMES
        .get(usize::from(first) % NICKNAMES.len())
        .copied()
        .unwrap_or_default()
}

/// The picture's URL, of the shape that WeChat's have.
pub(crate) fn avatar(union_id: &str) -> String {
    format!(
        "https://thirdwx.qlogo.cn/mmopen/vi_32/{}/132",
        digest(&format!("avatar:{union_id}"))
    )
}

/// Eleven digits in China.
pub(crate) fn phone_number(union_id: &str) -> String {
    format!("138{:08}", number(union_id) % 100_000_000)
}

/// FNV-1a.
fn number(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_has_a_name_a_picture_and_a_number() {
        assert_eq!(nickname("o1"), nickname("o1"));
        assert_eq!(phone_number("o1").len(), 11);
        assert_ne!(phone_number("o1"), phone_number("o2"));
        assert_ne!(avatar("o1"), avatar("o2"));
    }
}
