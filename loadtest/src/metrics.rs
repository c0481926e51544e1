//! The server's own figures, read from its `/metrics`.

use hashbrown::HashMap;

/// One scrape: every sample's value, summed over its labels.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    sums: HashMap<String, f64>,
}

impl Metrics {
    /// Reads Prometheus text.
    pub fn parse(text: &str) -> Self {
        let mut sums = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let name = name.split('{').next().unwrap_or(name);
            if let Ok(value) = value.parse::<f64>() {
                *sums.entry(name.to_owned()).or_default() += value;
            }
        }
        Self { sums }
    }

    /// A sample's value; 0 if the server has not said it.
    pub fn get(&self, name: &str) -> f64 {
        self.sums.get(name).copied().unwrap_or(0.0)
    }

    /// How much a counter grew since an earlier scrape.
    pub fn since(&self, earlier: &Self, name: &str) -> f64 {
        self.get(name) - earlier.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_summed() {
        let earlier = Metrics::parse("a_total{shard=\"0\"} 1\n");
        let metrics =
            Metrics::parse("# TYPE a_total counter\na_total{shard=\"0\"} 3\na_total{shard=\"1\"} 4\nb 2.5\nbad x\n");
        assert_eq!((metrics.get("a_total"), metrics.get("b"), metrics.get("c")), (7.0, 2.5, 0.0));
        assert_eq!(metrics.since(&earlier, "a_total"), 6.0);
    }
}
