"""What decides: services own the transactions; views turn HTTP into values and back."""
