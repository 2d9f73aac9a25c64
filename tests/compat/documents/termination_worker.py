"""Serves until it is told to stop."""

from tech_renaissance import TechRenaissanceServer


class Patient(TechRenaissanceServer):
    def run(self):
        self.setup_session_dir()
        self.write_status("ready")
        while self.should_continue():
            self.process_request()
        self.cleanup_session_dir()

    def main_logic(self, command, parameters):
        self.write_response(command, f"{command} in {self.session_id}{parameters}")
        return True


if __name__ == "__main__":
    Patient().run()
