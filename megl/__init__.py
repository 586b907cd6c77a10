"""What the commands share: `megl COMMAND`, tables, evaluation and pages."""
