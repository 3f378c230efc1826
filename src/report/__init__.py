"""All that is known of a name on one page, which loads nothing from elsewhere."""
