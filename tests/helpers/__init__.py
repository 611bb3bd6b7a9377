"""What tests share: archives made without custody, readers that know FORMAT.md alone, samples and environments."""
