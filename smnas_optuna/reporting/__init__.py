"""What users look at: progress, status, tables, figures, reports and the dashboard."""
