"""What people read: status, progress, the table at a sweep's end."""
