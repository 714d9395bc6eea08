"""What a setting switches on."""
