"""The study of linear regression: settings, table, claims and pictures on the simulator."""
