"""From scores to affinities to clusters, with a certificate and evidence."""
