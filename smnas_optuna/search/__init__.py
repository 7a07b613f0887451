"""What each stage searches, and how a trial of it is evaluated."""
