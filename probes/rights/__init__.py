"""What a process of ours may do, who it is, and how it opens what strangers wrote."""
