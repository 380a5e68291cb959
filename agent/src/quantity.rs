//! Amounts as Kubernetes writes them: `512Mi`, `1G`, `500m`.

/// Bytes of a memory quantity: a number with an optional suffix (k M G T, Ki Mi Gi Ti; also Docker's lower case).
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor: u64 = match suffix.trim() {
        "" | "b" | "B" => 1,
        "k" | "K" => 1000,
        "M" => 1000 * 1000,
        "G" => 1000 * 1000 * 1000,
        "T" => 1000 * 1000 * 1000 * 1000,
        "Ki" => 1 << 10,
        "Mi" | "m" => 1 << 20,
        "Gi" | "g" => 1 << 30,
        "Ti" | "t" => 1 << 40,
        _ => return None,
    };
    scaled(number, factor)
}

/// Thousandths of a core of a CPU quantity: `0.5`, `2`, `500m`.
pub fn cpu_millis(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_suffix('m') {
        Some(millis) => scaled(millis, 1),
        None => scaled(text, 1000),
    }
}

fn scaled(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (number.starts_with(|c: char| c.is_ascii_digit()) && value.is_finite() && value < u64::MAX as f64)
        .then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        assert_eq!(bytes("512Mi"), Some(512 << 20));
        assert_eq!(bytes("1.5G"), Some(1_500_000_000));
        assert_eq!(bytes("1024"), Some(1024));
        assert_eq!(cpu_millis("500m"), Some(500));
        assert_eq!(cpu_millis("0.25"), Some(250));
        assert_eq!(cpu_millis("2"), Some(2000));
        for bad in ["", "x", "-1", "1X", "1e400", "18446744073709551615Gi"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
