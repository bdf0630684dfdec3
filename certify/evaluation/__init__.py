"""What is a network worth: clean, attacked and certified accuracy of a data set (`certify.evaluate`)."""
