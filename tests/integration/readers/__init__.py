"""Programs that open exported directories with other libraries, and know nothing but what lies in the directories."""
