"""Study questions behind decisions of this project. The wheel leaves these modules out."""
