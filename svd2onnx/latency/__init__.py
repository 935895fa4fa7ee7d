"""What layers cost in time: measured one by one, added up for a plan, corrected by the finished file."""
