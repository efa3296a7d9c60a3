"""What runs on the control machine beside Ansible."""
