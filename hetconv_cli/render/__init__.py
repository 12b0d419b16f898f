"""Results -> text: tables, JSON, CSV, Markdown; and plots. Decides nothing, prints nothing."""
