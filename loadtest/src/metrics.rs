//! The server's own figures, read from its `/metrics`.

use std::collections::BTreeMap;

use hashbrown::HashMap;

/// One scrape: every sample's value, alone and summed over its labels.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    sums: HashMap<String, f64>,
    /// By name and labels, as they are written.
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads Prometheus text.
    pub fn parse(text: &str) -> Self {
        let mut sums = HashMap::new();
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((sample, value)) = line.rsplit_once(' ') else { continue };
            let name = sample.split('{').next().unwrap_or(sample);
            if let Ok(value) = value.parse::<f64>() {
                samples.insert(sample.to_owned(), value);
                *sums.entry(name.to_owned()).or_default() += value;
            }
        }
        Self { sums, samples }
    }

    /// A sample's value; 0 if the server has not said it.
    pub fn get(&self, name: &str) -> f64 {
        self.sums.get(name).copied().unwrap_or(0.0)
    }

    /// The sum of a name's samples that have all of these labels.
    pub fn labelled(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let all = |sample: &str| labels.iter().all(|(key, value)| sample.contains(&format!("{key}=\"{value}\"")));
        let of_name = self.samples.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        of_name.filter(|(sample, _)| all(sample)).map(|(_, value)| value).sum()
    }

    /// How much a counter grew since an earlier scrape.
    pub fn since(&self, earlier: &Self, name: &str) -> f64 {
        self.get(name) - earlier.get(name)
    }

    /// How much a counter grew since an earlier scrape, by its only label's values; those that stood still are left out.
    pub fn since_by_label(&self, earlier: &Self, name: &str) -> Vec<(&str, f64)> {
        let of_name = self.samples.iter().filter_map(|(sample, value)| {
            let label = sample.strip_prefix(name)?.strip_prefix('{')?.split('"').nth(1)?;
            Some((label, value - earlier.samples.get(sample).copied().unwrap_or(0.0)))
        });
        of_name.filter(|(_, grown)| *grown > 0.0).collect()
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
        assert_eq!(metrics.labelled("a_total", &[("shard", "1")]), 4.0);
        assert_eq!((metrics.labelled("a_total", &[]), metrics.labelled("a", &[])), (7.0, 0.0));
        assert_eq!(metrics.since_by_label(&earlier, "a_total"), [("0", 2.0), ("1", 4.0)]);
        assert_eq!(metrics.since_by_label(&metrics, "a_total"), []);
    }
}
