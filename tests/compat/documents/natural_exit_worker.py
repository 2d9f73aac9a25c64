"""Answers three requests and goes home."""

import sys

from tech_renaissance import TechRenaissanceServer


class ThreeAnswers(TechRenaissanceServer):
    def run(self, session_id):
        self.session_id = session_id
        self.setup_session_dir()
        self.write_status("ready")
        answered = 0
        while answered < 3 and self.should_continue():
            if not self.process_request():
                break
            answered += 1
        print(f"{self.session_id}: {answered} answers")
        self.cleanup_session_dir()

    def main_logic(self, command, parameters):
        if command != "echo":
            return False
        self.write_response(command, parameters)
        return True


if __name__ == "__main__":
    ThreeAnswers().run(sys.argv[1])
