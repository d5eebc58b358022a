"""Other serving frameworks with the same networks, measured side by side with this project."""
