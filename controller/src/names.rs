//! Names for sandboxes that were given none: `adjective-noun-xxxx`.

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "ample", "apt", "bold", "brave", "brief", "bright", "brisk", "calm", "civil", "clear", "clever",
    "cool", "cosy", "crisp", "deft", "eager", "early", "easy", "even", "exact", "fair", "fast", "fine", "firm",
    "fleet", "fond", "free", "fresh", "gentle", "glad", "golden", "good", "grand", "happy", "hardy", "jolly", "just",
    "keen", "kind", "light", "lively", "lucky", "merry", "mild", "neat", "nimble", "noble", "plain", "proud", "quick",
    "quiet", "rapid", "ready", "sharp", "shiny", "smart", "snug", "solid", "spry", "sunny", "swift", "warm",
];
const NOUNS: [&str; 64] = [
    "acorn", "alder", "badger", "bay", "beach", "birch", "bird", "brook", "cedar", "cloud", "comet", "coral", "crane",
    "creek", "dawn", "deer", "delta", "dune", "eagle", "elm", "falcon", "fern", "field", "finch", "fjord", "forest",
    "fox", "gecko", "glade", "grove", "hare", "hawk", "heron", "hill", "iris", "island", "ivy", "lake", "lark", "leaf",
    "lynx", "maple", "marten", "meadow", "moon", "moss", "oak", "orchid", "otter", "owl", "panda", "pine", "pond",
    "raven", "reef", "river", "robin", "seal", "spruce", "star", "stone", "swan", "tern", "willow",
];
/// Digits and letters, few of them vowels, so that hardly a word comes out.
const LETTERS: &[u8; 32] = b"bcdfghjkmnpqrstvwxyz0123456789ae";

/// A name by chance.
pub fn random() -> String {
    name(rand::random())
}

/// The name that belongs to a request: the same one for every retry. `attempt` counts up where the name is somebody
/// else's.
pub fn of_request(namespace: &str, request_id: &str, attempt: u32) -> String {
    let attempt = attempt.to_string();
    name(hash(&[namespace, request_id, &attempt]))
}

/// FNV-1a with a final mix: the same on every machine and in every version, unlike the standard library's hasher.
fn hash(parts: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

fn name(mut bits: u64) -> String {
    let mut take = |count: u64| {
        let index = bits % count;
        bits /= count;
        index as usize
    };
    let (adjective, noun) = (ADJECTIVES[take(64)], NOUNS[take(64)]);
    let suffix: String = (0..4).map(|_| char::from(LETTERS[take(32)])).collect();
    format!("{adjective}-{noun}-{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsb_proto::domain::validate_dns_name;

    #[test]
    fn a_generated_name_is_a_label() {
        for _ in 0..1000 {
            let name = random();
            validate_dns_name("name", &name).unwrap();
            assert_eq!(name.split('-').count(), 3);
        }
    }

    #[test]
    fn a_request_has_one_name_and_another_one_per_attempt() {
        assert_eq!(of_request("a", "r", 0), of_request("a", "r", 0));
        assert_ne!(of_request("a", "r", 0), of_request("a", "r", 1));
        assert_ne!(of_request("a", "r", 0), of_request("b", "r", 0));
    }
}
