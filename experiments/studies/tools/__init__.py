"""What the studies are made of: their settings, runs, records, figures and answers."""
