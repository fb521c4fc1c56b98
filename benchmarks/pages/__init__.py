"""Tables, figures and pages made from the result files."""
