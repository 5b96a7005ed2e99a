"""What an answer claims, whether the record says so, and whether it hangs on what it names."""
