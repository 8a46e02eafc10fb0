//! A simple mutator for bounded runs, which need no engine and no instrumented build.

/// Numbers without end from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `limit`, or 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % (limit.max(1) as u64)).unwrap_or(0)
    }
}

/// Makes new inputs of those of a corpus.
#[derive(Debug)]
pub struct Mutator {
    corpus: Vec<Vec<u8>>,
    random: Random,
}

/// No input grows beyond this.
const LONGEST: usize = 16 << 10;

impl Mutator {
    /// Of this corpus; the same inputs for the same seed.
    pub fn new(corpus: Vec<Vec<u8>>, seed: u64) -> Self {
        Self { corpus, random: Random::new(seed) }
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut input = match self.corpus.is_empty() {
            true => Vec::new(),
            false => self.corpus[random.below(self.corpus.len())].clone(),
        };
        for _ in 0..=random.below(6) {
            let at = random.below(input.len() + 1);
            let length = random.below(16).min(input.len() - at);
            match random.below(9) {
                0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
                2 if at < input.len() => input[at] = random.number() as u8,
                3 if at < input.len() => {
                    let edges = [0, 1, 0x7f, 0x80, 0xff, b'/', b'.', b'0', b'9', b'"'];
                    input[at] = edges[random.below(edges.len())];
                }
                4 => input.insert(at, random.number() as u8),
                5 => drop(input.drain(at..at + length)),
                6 => {
                    let part = input[at..at + length].to_vec();
                    let to = random.below(input.len() + 1);
                    input.splice(to..to, part);
                }
                7 => {
                    for byte in &mut input[at..at + length] {
                        *byte = random.number() as u8;
                    }
                }
                _ => {
                    let other = &self.corpus[random.below(self.corpus.len())];
                    let from = random.below(other.len() + 1);
                    let part = other[from..(from + random.below(64)).min(other.len())].to_vec();
                    input.splice(at..at, part);
                }
            }
        }
        input.truncate(LONGEST);
        input
    }
}
