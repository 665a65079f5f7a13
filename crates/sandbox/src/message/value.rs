//! What a template's value may be: its key begins with its type.

/// Whether `value` follows the rule of `key`; a key of no known type takes any text.
pub(super) fn is_valid(key: &str, value: &str) -> bool {
    let count = value.chars().count();
    let all = |accepts: fn(char) -> bool| value.chars().all(accepts);
    match key.trim_end_matches(|digit: char| digit.is_ascii_digit()) {
        "thing" => count <= 20,
        "number" => is_decimal(value, 32),
        "letter" => count <= 32 && all(|c| c.is_ascii_alphabetic()),
        "symbol" => count <= 5 && all(is_symbol),
        "character_string" => count <= 32 && all(|c| c.is_ascii_alphanumeric() || is_symbol(c)),
        "time" => value.split('~').all(is_time),
        "date" => value
            .split('~')
            .all(|part| is_date(part.trim()) || is_time(part)),
        "amount" => is_amount(value),
        "phone_number" => count <= 17 && all(|c| c.is_ascii_digit() || is_symbol(c)),
        "car_number" => count <= 8 && all(char::is_alphanumeric),
        "name" => is_name(value, count),
        "phrase" => count <= 5 && all(is_chinese),
        _ => true,
    }
}

fn is_chinese(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}')
}

fn is_symbol(c: char) -> bool {
    !c.is_alphanumeric() && !c.is_control()
}

fn is_decimal(text: &str, digits: usize) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    [whole, fraction]
        .iter()
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
        && text.bytes().filter(u8::is_ascii_digit).count() <= digits
}

fn is_amount(text: &str) -> bool {
    let text = text.strip_suffix('元').unwrap_or(text);
    is_decimal(
        text.strip_prefix(['¥', '￥', '$', '€', '£'])
            .unwrap_or(text),
        10,
    )
}

fn is_name(text: &str, count: usize) -> bool {
    let allowed = |c: char| is_chinese(c) || c.is_ascii_alphabetic() || is_symbol(c);
    count <= if text.chars().any(is_chinese) { 10 } else { 20 } && text.chars().all(allowed)
}

/// `HH:MM` or `HH:MM:SS`, a date before it or not.
fn is_time(text: &str) -> bool {
    let text = text.replace('日', "日 ");
    let parts: Vec<_> = text.split_whitespace().collect();
    match parts.as_slice() {
        [time] => is_clock(time),
        [date, time] => is_date(date) && is_clock(time),
        _ => false,
    }
}

fn is_clock(text: &str) -> bool {
    let Some(parts) = numbers(text, &[':']) else {
        return false;
    };
    match *parts.as_slice() {
        [hour, minute] => hour < 24 && minute < 60,
        [hour, minute, second] => hour < 24 && minute < 60 && second < 60,
        _ => false,
    }
}

/// `y年m月d日`, `y年m月`, `m月d日`, or the same joined by `-`, `/` or `.`.
fn is_date(text: &str) -> bool {
    let joined = text.replace(['年', '月'], "-").replace('日', "");
    let Some(parts) = numbers(joined.trim_end_matches('-'), &['-', '/', '.']) else {
        return false;
    };
    match *parts.as_slice() {
        [year, month, day] => year > 31 && is_month(month) && is_day(day),
        [first, second] => is_month(first) && is_day(second) || first > 31 && is_month(second),
        _ => false,
    }
}

fn is_month(number: u32) -> bool {
    (1..=12).contains(&number)
}

fn is_day(number: u32) -> bool {
    (1..=31).contains(&number)
}

fn numbers(text: &str, separators: &[char]) -> Option<Vec<u32>> {
    text.split(separators)
        .map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_the_rule_of_their_type() {
        for (key, value) in [
            ("thing1", "二十个字以内，什么都可以 ok!"),
            ("number2", "12.50"),
            ("letter3", "abc"),
            ("symbol4", "!?#"),
            ("character_string5", "SF-1234567890"),
            ("time6", "15:01"),
            ("time6", "2019年10月1日 15:01"),
            ("time6", "2019-10-01 15:01:07~2019-10-01 16:00:00"),
            ("date7", "2019年10月1日"),
            ("date7", "10月1日"),
            ("date7", "2019/10"),
            ("date7", "2019年10月1日 15:01"),
            ("amount8", "¥100.00"),
            ("amount8", "100元"),
            ("phone_number9", "+86-0766-66888866"),
            ("car_number10", "粤A8Z888挂"),
            ("name11", "张三"),
            ("name11", "John Smith"),
            ("phrase12", "配送中"),
            ("keyword1", "anything at all, of any length whatever"),
        ] {
            assert!(is_valid(key, value), "{key}: {value}");
        }
    }

    #[test]
    fn values_that_break_their_rule_are_refused() {
        for (key, value) in [
            ("thing1", "这一段文字的长度明明白白地超过了二十个字的限制"),
            ("number2", "12a"),
            ("letter3", "abc1"),
            ("symbol4", "!!!!!!"),
            ("character_string5", "顺丰123"),
            ("time6", "25:00"),
            ("time6", "明天"),
            ("date7", "2019-13-01"),
            ("amount8", "一百元"),
            ("amount8", "12345678901"),
            ("phone_number9", "123456789012345678"),
            ("car_number10", "粤A8Z888888"),
            ("name11", "一二三四五六七八九十一"),
            ("phrase12", "ok"),
        ] {
            assert!(!is_valid(key, value), "{key}: {value}");
        }
    }
}
