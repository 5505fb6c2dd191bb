"""The counters of the systems that checkpoints come from: costs as their papers state them."""
